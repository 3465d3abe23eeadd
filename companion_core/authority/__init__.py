"""The side that may hold secrets: keychain, custody, sign-in, manifest fetch."""
