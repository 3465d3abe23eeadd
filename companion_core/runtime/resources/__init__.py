"""What the runtime's tree takes of the machine, and how much is free."""
