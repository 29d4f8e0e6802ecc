"""The engine: from a portrait, a voice and a prompt to a talking video. It knows nothing of ComfyUI."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .multitalk_pipeline import MultiTalkPipeline

__all__ = ["MultiTalkPipeline"]


def __getattr__(name: str) -> Any:
    """The entry, imported when it is asked for: it brings torch along."""
    if name in __all__:
        from . import multitalk_pipeline

        return getattr(multitalk_pipeline, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
