"""The Windows keychain of companion-core: the person's Credential Manager."""
