"""Benchmarks of the engine's speed, memory and accuracy: `python -m benchmarks`."""
