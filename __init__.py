"""MultiTalk for ComfyUI: a portrait, a voice and a prompt become a talking video."""

from .nodes import comfy_entrypoint

WEB_DIRECTORY = "./web"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
