"""The gradients of one step: divided, checked, measured, and brought to the scale in force."""
