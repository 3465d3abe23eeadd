"""Where the sides meet: a verified model behind the gateway, watched while it serves."""
