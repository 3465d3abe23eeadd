"""The conformance kit and the fakes, shipped for plugin authors."""

from companion_core.testing.fake_keychain import FakeKeychain
from companion_core.testing.keychain_kit import check_keychain

__all__ = ["FakeKeychain", "check_keychain"]
