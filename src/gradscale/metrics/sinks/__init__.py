"""Where metrics can go: one system a file."""
