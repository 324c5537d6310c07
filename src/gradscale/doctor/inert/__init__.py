"""Pickled files read as inert data: nothing that they name is imported or called."""
