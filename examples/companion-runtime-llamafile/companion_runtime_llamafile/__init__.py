"""llamafile as a runtime of companion-core."""
