"""One training run, a comparison of runs, and the folder they are kept in."""
