"""What a saved scaler state means and what is wrong with it: checkpoints and runs of ours and of other systems.

Nothing that a file holds is ever run: pickled objects are read as names and plain data.
"""
