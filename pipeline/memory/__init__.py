"""Device memory: which weights stay on the device, and which are streamed through it."""
