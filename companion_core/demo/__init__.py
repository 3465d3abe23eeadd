"""`companion demo`: the whole job on what ships in the package."""
