"""Rules for this file: a secret is a value that nothing prints, stores or copies by accident.

It compares in constant time and gives its text to one named method alone. It imports the
standard library's comparison and nothing else, and it knows nothing of a companion.
"""

from __future__ import annotations

import hmac
from typing import Any, Final, Never, final

__all__ = ["Secret"]

_HIDDEN: Final = "Secret(hidden)"


@final
class Secret:
    """A token, key or other credential.

    `repr`, `str` and `format` show nothing of it, however they are asked. Two secrets are equal
    when their texts are; the comparison takes a time that tells their lengths at most. A secret
    equals nothing else: a plain text is compared by making a secret of it. As with a text, an
    empty one is false. It has no hash, because a look-up in a dictionary takes a time that
    depends on the text.

    Raises:
        TypeError: it is made of anything but a `str`, changed, pickled, or written as JSON.
    """

    __slots__ = ("_text",)
    _text: str

    def __init__(self, text: str) -> None:
        if type(text) is not str:
            raise TypeError("a secret is made of a text")
        object.__setattr__(self, "_text", text)

    def reveal(self) -> str:
        """Return the text, for the one place that sends, stores or compares it."""
        return self._text

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        if type(other) is not Secret:
            return NotImplemented
        return hmac.compare_digest(_bytes_of(self._text), _bytes_of(other._text))

    __hash__ = None  # type: ignore[assignment]  # `object` has a hash; this class takes it away

    def __repr__(self) -> str:
        return _HIDDEN

    def __format__(self, _spec: str) -> str:
        return _HIDDEN

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, _memo: Any) -> Secret:
        return self  # `dataclasses.asdict` copies; the copy must be as silent as the value

    def __setattr__(self, _name: str, _value: object) -> Never:
        raise TypeError("a secret does not change")

    def __delattr__(self, _name: str) -> Never:
        raise TypeError("a secret does not change")

    def __getstate__(self) -> Never:
        raise TypeError("a secret is not stored")

    def __reduce_ex__(self, _protocol: Any) -> Never:
        raise TypeError("a secret is not stored")


def _bytes_of(text: str) -> bytes:
    # Lone surrogates are kept apart, so that two different texts never become equal bytes.
    return text.encode(errors="surrogatepass")
