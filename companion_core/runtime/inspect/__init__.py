"""What a running tree really holds: environment, sockets and descriptors, read back."""
