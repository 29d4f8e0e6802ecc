"""One run: windows, recipes, the store of finished windows, recovery from faults."""
