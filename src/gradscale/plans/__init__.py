"""Who decides the exponent of every node."""
