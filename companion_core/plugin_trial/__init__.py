"""Try plugins in a child process: what they do at import ends with the child."""
