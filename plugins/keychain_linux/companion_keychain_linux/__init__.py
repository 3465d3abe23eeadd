"""The Linux keychain of companion-core: the desktop's Secret Service."""
