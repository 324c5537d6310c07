"""The autograd graph as plain data, what is measured on it, and the plan attached to it."""
