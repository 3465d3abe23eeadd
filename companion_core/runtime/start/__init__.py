"""The way up: from a proved program and a checked plan to a runtime that answers."""
