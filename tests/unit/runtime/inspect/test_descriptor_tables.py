"""Which threads are looked at for descriptors of their own."""

from __future__ import annotations

import os
import sys

import pytest

from companion_core.runtime.inspect import descriptor_tables

pytestmark = pytest.mark.unit

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@linux_only
def test_many_threads_that_share_another_table_are_looked_at_once(monkeypatch) -> None:
    tables = {1: "first", 2: "first", 3: "other", 4: "other", 5: "first", 6: "third"}
    monkeypatch.setattr(os, "listdir", lambda _folder: map(str, tables))
    monkeypatch.setattr(
        descriptor_tables, "_comparison", lambda: lambda one, other: tables[one] == tables[other]
    )
    assert descriptor_tables.table_holders(1) == [1, 3, 6]
