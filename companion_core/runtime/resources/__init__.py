"""What the runtime's processes use of the machine, and how much memory is free."""
