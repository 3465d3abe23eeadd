"""Gaps in the standard library; nothing here knows of a companion."""
