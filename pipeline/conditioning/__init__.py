"""What a run is told to show: the portrait, who is where in it, and the prompt."""
