"""Reads files of strangers in a process of its own, which runs nothing of them and has limits."""
