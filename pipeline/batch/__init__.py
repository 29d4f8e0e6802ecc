"""Many clips on many devices: a manifest of requests, run by Ray."""
