"""What the tests of the conformance kits share."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest


def assert_breaks(
    rule: int, rules: Mapping[int, str], seam: str, check: Callable[[], object]
) -> None:
    """See the check fail with the rule's number and text, what was seen and what was expected."""
    with pytest.raises(AssertionError, match=rf"^{seam} rule {rule} \(") as caught:
        check()
    assert rules[rule] in str(caught.value)
    assert "seen" in str(caught.value)
    assert "expected" in str(caught.value)
