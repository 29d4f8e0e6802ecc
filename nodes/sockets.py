"""The types of our sockets. Their names are saved in people's workflows."""

from __future__ import annotations

from comfy_api.latest import io

Model = io.Custom("MULTITALK_MODEL")  # pipeline.weights.handles.TransformerFiles
AudioEncoder = io.Custom("MULTITALK_AUDIO_ENCODER")  # Lazy[AudioEncoder]
TextEncoder = io.Custom("MULTITALK_TEXT_ENCODER")  # Lazy[TextEncoder]
ImageEncoder = io.Custom("MULTITALK_IMAGE_ENCODER")  # Lazy[ImageEncoder]
Vae = io.Custom("MULTITALK_VAE")  # Lazy[VideoVae]
AudioEmbeds = io.Custom("MULTITALK_AUDIO")  # pipeline.audio.embeds.AudioEmbeds
Conditioning = io.Custom("MULTITALK_CONDITIONING")  # pipeline.conditioning.conditioning.Conditioning
Speakers = io.Custom("MULTITALK_SPEAKERS")  # tuple of pipeline.conditioning.speakers.Place
Options = io.Custom("MULTITALK_OPTIONS")  # pipeline.acceleration.accelerate.AccelerationOptions
KijaiEmbeds = io.Custom("MULTITALK_EMBEDS")  # the dictionary that WanVideoWrapper's sampler takes
