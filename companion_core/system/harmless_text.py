"""Text that others wrote, as it may go to a person's terminal."""

from __future__ import annotations

__all__ = ["harmless"]


def harmless(text: str) -> str:
    """Return a text in which nothing moves the cursor, changes the screen or types for a person.

    The name of a file, the metadata of a plugin and an answer of a model may hold such characters,
    or those that turn the direction of writing. Line breaks and tabs stay.
    """
    return "".join(
        letter if letter in "\n\t" or letter.isprintable() else "\N{REPLACEMENT CHARACTER}"
        for letter in text
    )
