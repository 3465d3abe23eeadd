"""The `companion` command: one file per command."""
