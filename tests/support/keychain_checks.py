"""What the tests of the keychain plugins share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from companion_core.errors import Reason
from companion_core.providers import KeychainUnavailable


def refusal(call: Callable[[], object]) -> Reason:
    """Return the reason that a store refuses with; no error of the system goes along with it."""
    with pytest.raises(KeychainUnavailable) as caught:
        call()
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    return caught.value.reason
