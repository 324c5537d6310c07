"""The built-in training tasks: data, model, loss and metric, one a file."""
