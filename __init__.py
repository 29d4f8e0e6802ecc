"""MultiTalk for ComfyUI: a portrait, a voice and a prompt become a talking video."""

from .versions import check_versions

check_versions()  # an older ComfyUI lacks names that the nodes import

from .nodes import comfy_entrypoint  # noqa: E402

WEB_DIRECTORY = "./web"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
