"""The macOS keychain of companion-core: the person's login keychain."""
