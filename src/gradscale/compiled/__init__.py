"""Backward passes that `torch.compile` traced, opened for a plan: read, multiplied and visited."""
