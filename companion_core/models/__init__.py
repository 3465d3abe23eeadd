"""From a signed entry to a `VerifiedModel`: download, proof, and the hold against writers."""
