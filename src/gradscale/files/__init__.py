"""Files that are written: whole or not at all, by one process, and never over what is not ours."""
