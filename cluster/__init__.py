"""Where studies run: one file for each kind of place."""
