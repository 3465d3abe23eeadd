"""Tells PyInstaller what a frozen product takes along of the core; no other code imports it."""

from __future__ import annotations

from pathlib import Path

__all__ = ["hook_dirs"]


def hook_dirs() -> list[str]:
    """Return the folder of the core's hook, for the entry point `pyinstaller40`."""
    return [str(Path(__file__).parent)]
