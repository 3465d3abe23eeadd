"""The one doorway out of the process: its interface, the live one, and the one that refuses."""
