"""Visual conditioning of a run: the portrait, who is where in it, and the prompt."""
