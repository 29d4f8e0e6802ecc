"""The same request, run by fal: never paid twice, never lost, and without showing the key to anybody."""
