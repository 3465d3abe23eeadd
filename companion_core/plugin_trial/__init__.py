"""A plugin tried in a child process, so that what it does ends there."""
