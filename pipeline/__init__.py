"""The engine: from a portrait, a voice and a prompt to a talking video. It has never heard of ComfyUI."""
