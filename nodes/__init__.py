"""The nodes that ComfyUI gets from us."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import folders
from .audio import MultiTalkEmbedsFromKijai, MultiTalkEmbedsToKijai, MultiTalkEncodeAudio
from .conditioning import MultiTalkCondition
from .dialogue import MultiTalkDialogue, MultiTalkSplitRecording
from .loaders import (
    MultiTalkLoadAudioEncoder,
    MultiTalkLoadImageEncoder,
    MultiTalkLoadLora,
    MultiTalkLoadModel,
    MultiTalkLoadTextEncoder,
    MultiTalkLoadVAE,
)
from .media import MultiTalkLoadAudio, MultiTalkLoadImage
from .options import MultiTalkAccelerationOptions, MultiTalkDevices, MultiTalkLongVideoOptions
from .preflight import MultiTalkPreflight
from .refusals import show_refusals
from .remote import MultiTalkFal, MultiTalkFalCollect
from .sampler import MultiTalkSampler
from .sockets import take_links_only
from .speakers import MultiTalkSpeaker, MultiTalkSpeakers

NODES: list[type[io.ComfyNode]] = [
    MultiTalkLoadImage,
    MultiTalkLoadAudio,
    MultiTalkLoadModel,
    MultiTalkLoadLora,
    MultiTalkLoadTextEncoder,
    MultiTalkLoadImageEncoder,
    MultiTalkLoadVAE,
    MultiTalkLoadAudioEncoder,
    MultiTalkEncodeAudio,
    MultiTalkSpeaker,
    MultiTalkSpeakers,
    MultiTalkDialogue,
    MultiTalkSplitRecording,
    MultiTalkCondition,
    MultiTalkPreflight,
    MultiTalkSampler,
    MultiTalkLongVideoOptions,
    MultiTalkAccelerationOptions,
    MultiTalkDevices,
    MultiTalkEmbedsToKijai,
    MultiTalkEmbedsFromKijai,
    MultiTalkFal,
    MultiTalkFalCollect,
]


class MultiTalkExtension(ComfyExtension):
    """Our nodes, and the folders that they list."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """All nodes."""
        folders.register_folders()
        for node in NODES:
            take_links_only(node)
            show_refusals(node)
        return NODES


async def comfy_entrypoint() -> MultiTalkExtension:
    """The entry that ComfyUI calls."""
    return MultiTalkExtension()
