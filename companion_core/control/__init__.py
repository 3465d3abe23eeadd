"""One running instance, asked from outside over its owner-only socket."""
