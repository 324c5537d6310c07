"""Half- and 8-bit products with float32 accumulation, on any machine."""
