"""From sound files to what the model hears: waveforms, who speaks when, speech features."""
