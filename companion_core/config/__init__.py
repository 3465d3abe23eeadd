"""What the person set, and where state lives."""
