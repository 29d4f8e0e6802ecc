"""Device memory: placement of weights, blocks streamed through the device, errors of memory that ran out."""
