"""The types of our sockets, whose names are saved in people's workflows."""

from __future__ import annotations

import inspect
from typing import Any

from comfy_api.latest import io

Model = io.Custom("MULTITALK_MODEL")  # pipeline.weights.handles.TransformerFiles
AudioEncoder = io.Custom("MULTITALK_AUDIO_ENCODER")  # Lazy[AudioEncoder]
TextEncoder = io.Custom("MULTITALK_TEXT_ENCODER")  # Lazy[TextEncoder]
ImageEncoder = io.Custom("MULTITALK_IMAGE_ENCODER")  # Lazy[ImageEncoder]
Vae = io.Custom("MULTITALK_VAE")  # Lazy[VideoVae]
AudioEmbeds = io.Custom("MULTITALK_AUDIO")  # pipeline.audio.embeds.AudioEmbeds
Conditioning = io.Custom("MULTITALK_CONDITIONING")  # pipeline.conditioning.conditioning.Conditioning
Speakers = io.Custom("MULTITALK_SPEAKERS")  # tuple of nodes.speakers.Speaker
Dialogue = io.Custom("MULTITALK_DIALOGUE")  # pipeline.audio.clips.Dialogue
Options = io.Custom("MULTITALK_OPTIONS")  # nodes.options.SamplerOptions
BoundingBox = io.Custom("BOUNDING_BOX")  # core's, of detectors
KijaiEmbeds = io.Custom("MULTITALK_EMBEDS")  # the dictionary that WanVideoWrapper's sampler takes


def take_links_only(node: type[io.ComfyNode]) -> None:
    """Has `node` refuse, before anything runs, a value that a workflow written by hand gives to one of its sockets.

    ComfyUI asks `validate_inputs` with the values that stand in the workflow itself, for the arguments that its
    signature names; what comes by a link is not there yet.
    """
    sockets = [socket.id for socket in node.define_schema().inputs if not isinstance(socket, io.WidgetInput)]
    if not sockets:
        return

    def validate_inputs(cls: type, **values: Any) -> bool | str:
        for name in sockets:
            if values.get(name) is not None:
                return f'{name} takes a link to a node\'s output, like ["12", 0], got the value {values[name]!r}.'
        return True

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    arguments = [inspect.Parameter(name, kind, default=None) for name in sockets]
    validate_inputs.__signature__ = inspect.Signature([inspect.Parameter("cls", kind), *arguments])
    node.validate_inputs = classmethod(validate_inputs)  # pyright: ignore[reportAttributeAccessIssue]
