"""Where the sides meet: a verified model behind the gateway, kept serving."""
