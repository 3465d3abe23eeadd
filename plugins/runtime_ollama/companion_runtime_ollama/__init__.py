"""Ollama as a runtime of companion-core."""
