"""Trainers and engines: each hands a scaler to the host's own place for one.

A module here imports its host, so it is imported only when it is asked for; `gradscale.attach` does
so for a host that is there already.
"""
