"""Apple MLX as a runtime of companion-core."""
