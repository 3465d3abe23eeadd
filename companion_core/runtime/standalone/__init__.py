"""Programs run by path with the standard library alone; they import nothing of the package."""
