"""How fast the engine is, how much memory it takes, and what it gives up for that: `python -m benchmarks`."""
