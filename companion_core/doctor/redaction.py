"""Rules for this file: which parts of a text may leave the machine in a support request (I-15).

Pure. Known secrets are replaced wherever they stand. Text that merely looks like a secret is
replaced too, so that in doubt nothing leaves.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from companion_core.system.secret import Secret

__all__ = ["Redactor", "shown_url"]

_GONE: Final = "[redacted]"
_SHORTEST_SECRET: Final = 6
_LONGEST_LINE: Final = 300

# user:password@ and ?query of any text in the form of an address.
_URL = re.compile(
    r"\b([a-z][a-z0-9+.-]*://)(?:[^\s/@\"'<>]*@)?([^\s?#\"'<>]*)[^\s\"'<>]*", re.IGNORECASE
)
_AUTHORIZATION = re.compile(
    r"\b(authorization|proxy-authorization|cookie|set-cookie)\b.*", re.IGNORECASE
)
_BEARER = re.compile(r"\b(bearer|basic)\s+\S+", re.IGNORECASE)
_NAMED_SECRET = re.compile(
    r"([\"']?[\w.-]*(?:password|passwd|secret|token|credential|api[_-]?key|_key)[\w.-]*[\"']?"
    r"\s*[=:]\s*)(?:\"[^\"]*\"?|'[^']*'?|\S+)",
    re.IGNORECASE,
)
# Digests, keys, tokens: no word or path segment that we write is as long or has such a prefix.
_LONG_RUN = re.compile(
    r"[A-Za-z0-9_+=-]{32,}|[A-Za-z0-9+/]{24,}={1,2}|\bed25519:\S+"
    r"|\b(?:sk|pk|gh[a-z]|github_pat|hf|xox[a-z])[-_][A-Za-z0-9_-]{6,}"
)
_PEOPLE_FOLDERS = re.compile(r"(/home/|/Users/|[A-Za-z]:\\Users\\)[^/\\\s:\"']+")
# A runtime that logs a request may quote it.
_QUOTED = re.compile(r"\"[^\"]*\"?|`[^`]*`?|(?<!\w)'[^']*'?")
_TALK = re.compile(
    r"\b(prompts?|contents?|messages?|inputs?|texts?|chat|user|assistant|system|completion|query"
    r"|response|output)\b\s*[=:>].*",
    re.IGNORECASE,
)
# The beginnings of the log lines that known programs write. Other lines may belong to a prompt.
_RUNTIME_LINE = re.compile(
    r"(?:\d+(?:\.\d+)+ [DIWE] )?"  # llama.cpp: time and level, then the part that logs
    r"(?:(?:srv|slot|que|cmn)\s+[\w()]+\s*:|(?:main|llama_\w+|load_\w+|print_info|ggml_\w+)\s*:)"
    r"|time=\d\S* level=[A-Z]+ "  # of programs in Go
)
_COMPANION_LINE = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ )?companion: ")


def shown_url(url: str) -> str:
    """Return an address without the parts that may be secret: credentials, query, fragment."""
    return _URL.sub(lambda match: match[1] + match[2], url)


@dataclass(frozen=True, slots=True)
class Redactor:
    """Removes secrets and the names of personal folders from texts.

    Attributes:
        secrets: known secrets; each is replaced wherever it stands.
        places: folders and the names that replace them, the longest folder first.
    """

    secrets: tuple[Secret, ...] = ()
    places: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, *, secrets: Iterable[str], places: Iterable[tuple[str, str]]) -> Redactor:
        """Return a redactor; it ignores secrets too short to be told from ordinary words."""
        known = sorted((s for s in secrets if len(s) >= _SHORTEST_SECRET), key=len, reverse=True)
        named = sorted((p for p in places if len(p[0]) > 1), key=lambda p: len(p[0]), reverse=True)
        return cls(tuple(map(Secret, known)), tuple(named))

    def text(self, text: str) -> str:
        """Return `text` without secrets, digests, credentials and the person's folders."""
        for secret in self.secrets:
            text = text.replace(secret.reveal(), _GONE)
        for folder, name in self.places:
            text = text.replace(folder, name)
        text = _PEOPLE_FOLDERS.sub(lambda match: match[1] + "[person]", text)
        text = _AUTHORIZATION.sub(lambda match: f"{match[1]}: {_GONE}", text)
        text = _BEARER.sub(lambda match: f"{match[1]} {_GONE}", text)
        text = _URL.sub(lambda match: match[1] + match[2], text)
        text = _NAMED_SECRET.sub(lambda match: match[1] + _GONE, text)
        return _LONG_RUN.sub(_GONE, text)

    def log_line(self, line: str, log: str = "runtime.log") -> str | None:
        """Return a line that a known program wrote to `log`, redacted; None for any other line."""
        begins = _COMPANION_LINE if log.startswith("companion.log") else _RUNTIME_LINE
        if begins.match(line) is None:
            return None
        line = _QUOTED.sub('"…"', line)
        line = _TALK.sub(lambda match: f"{match[1]}: {_GONE}", line)
        return self.text(line)[:_LONGEST_LINE]

    def document(self, value: Any) -> Any:
        """Return a JSON value with every text redacted; keys stay, for the program chose them."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {key: self.document(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.document(item) for item in value]
        return value
