"""One file a system: how its saved loss scaler is known, read and written."""
