"""Models in half precision, with float32 master weights that any torch optimizer updates."""
