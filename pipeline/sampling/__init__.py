"""From noise to latents, window by window. It is handed a function that predicts a velocity, and knows no network."""
