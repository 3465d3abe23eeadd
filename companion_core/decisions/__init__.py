"""Pure rules: no I/O, no clock, no environment, no logging."""
