"""Rules for this file: which texts of a plugin's plan are taken at all. Pure; imports nothing."""

from __future__ import annotations

from typing import Final

__all__ = ["MOST_ITEMS", "MOST_TEXT_BYTES", "plain_name", "plain_text", "plain_texts"]

MOST_TEXT_BYTES: Final = 128 * 1024  # one argument or value; Linux itself takes no more
MOST_ITEMS: Final = 64
_MAX_NAME: Final = 256


def plain_text(value: object) -> str | None:
    """Return exact text that every system takes as an argument, else None."""
    if type(value) is not str or "\0" in value or len(value) > MOST_TEXT_BYTES:
        return None
    try:
        return value if len(value.encode()) <= MOST_TEXT_BYTES else None
    except UnicodeEncodeError:  # a lone surrogate
        return None


def plain_name(value: object) -> str | None:
    """Return a name that can be shown, else None."""
    text = plain_text(value)
    return text if text and len(text) <= _MAX_NAME and text.isprintable() else None


def plain_texts(value: object, *, least: int = 0, most: int = MOST_ITEMS) -> tuple[str, ...] | None:
    """Return a tuple of such texts, else None."""
    if type(value) is not tuple or not least <= len(value) <= most:
        return None
    texts = tuple(text for item in value if (text := plain_text(item)) is not None)
    return texts if len(texts) == len(value) else None
