"""llama.cpp as a runtime of companion-core."""
