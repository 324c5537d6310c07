"""Pickled files read as inert data: nothing they name is imported, nothing they ask for is called."""
