"""A secret: nothing shows it, it compares in constant time, and it goes nowhere unasked."""

from __future__ import annotations

import copy
import dataclasses
import hmac
import json
import logging
import pickle
import traceback
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from companion_core.system.secret import Secret

pytestmark = pytest.mark.unit

PLANTED = "planted-" + "s" * 35
TEXTS = st.text(st.characters(codec=None), max_size=50)


@dataclasses.dataclass(frozen=True, slots=True)
class Holder:
    name: str
    secret: Secret


@pytest.mark.parametrize(
    "show",
    [
        repr,
        str,
        ascii,
        format,
        lambda secret: f"{secret}{secret!s}{secret!r}{secret:>50}",
        lambda secret: "%s %r %-60s" % (secret, secret, secret),  # noqa: UP031 - one way of many
        lambda secret: "{} {!r} {:^30}".format(secret, secret, secret),  # noqa: UP032 - another
        lambda secret: str([secret, {"key": secret}, (secret,)]),
        lambda secret: repr(Holder("n", secret)),
        lambda secret: str(dataclasses.asdict(Holder("n", secret))),
        lambda secret: str(dataclasses.astuple(Holder("n", secret))),
        lambda secret: json.dumps({"key": secret}, default=str),
        lambda secret: str(vars(ValueError(secret))) + repr(ValueError(secret)),
        lambda secret: logging.LogRecord("n", 10, "p", 1, "%s", (secret,), None).getMessage(),
    ],
)
def test_nothing_shows_it(show: Any) -> None:
    shown = show(Secret(PLANTED))
    assert PLANTED not in shown
    assert "planted" not in shown


def test_one_method_gives_the_text() -> None:
    assert Secret(PLANTED).reveal() == PLANTED
    public = {name for name in dir(Secret) if not name.startswith("_")}
    assert public == {"reveal"}


@given(TEXTS, TEXTS)
def test_it_is_equal_where_the_text_is(first: str, second: str) -> None:
    assert (Secret(first) == Secret(second)) is (first == second)
    assert (Secret(first) != Secret(second)) is (first != second)
    assert Secret(first) == Secret(first)


def test_the_comparison_takes_the_same_time_for_every_text(monkeypatch: Any) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(left: bytes, right: bytes) -> bool:
        compared.append((left, right))
        return False

    monkeypatch.setattr(hmac, "compare_digest", compare)
    pairs = [("abc", "abd"), ("abc", "a"), ("", "a"), ("abc", "abc")]
    for first, second in pairs:
        assert Secret(first) != Secret(second)
    assert compared == [(first.encode(), second.encode()) for first, second in pairs]


@pytest.mark.parametrize("other", [PLANTED, PLANTED.encode(), None, 1, [PLANTED]])
def test_it_equals_no_other_kind_of_value(other: object) -> None:
    assert Secret(PLANTED) != other
    assert other != Secret(PLANTED)


@pytest.mark.parametrize("text", ["", "0", "False", "a"])
def test_it_is_true_where_the_text_is(text: str) -> None:
    assert bool(Secret(text)) is bool(text)


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize("value", [None, PLANTED.encode(), 1, Secret(PLANTED), Text(PLANTED)])
def test_it_is_made_of_a_plain_text_alone(value: Any) -> None:
    with pytest.raises(TypeError) as caught:
        Secret(value)
    assert PLANTED not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "misuse",
    [
        hash,
        vars,
        len,
        iter,
        json.dumps,
        pickle.dumps,
        lambda secret: pickle.dumps(secret, protocol=0),
        lambda secret: pickle.dumps(Holder("n", secret)),
        lambda secret: secret.__getstate__(),
        lambda secret: secret.__reduce__(),
        lambda secret: secret + "",
        lambda secret: "".join(iter([secret])),
        lambda secret: {secret: 1},
        lambda secret: setattr(secret, "_text", "other"),
        lambda secret: delattr(secret, "_text"),
        lambda secret: setattr(secret, "new", 1),
    ],
)
def test_a_misuse_is_refused_in_silence(misuse: Any) -> None:
    secret = Secret(PLANTED)
    with pytest.raises(TypeError) as caught:
        misuse(secret)
    assert PLANTED not in "".join(traceback.format_exception(caught.value))
    assert secret.reveal() == PLANTED


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_is_the_same_secret(copied: Any) -> None:
    secret = Secret(PLANTED)
    assert copied(secret) is secret
