"""Widgets of other nodes in the graph that is being run, so that no node asks for a value that another one has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

from .audio import MultiTalkEncodeAudio
from .conditioning import MultiTalkCondition
from .sampler import MultiTalkSampler

Inputs = Mapping[str, Any]  # of a node: values, and links as [node id, slot]


def run_widgets(graph: Mapping[str, Any], node_id: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The widgets of the sampler that has the model of node `node_id`, and of the nodes that encode for it."""
    model = graph.get(node_id, {}).get("inputs", {}).get("model")
    samplers = _nodes(graph, MultiTalkSampler)
    sampler = next((number for number, inputs in samplers.items() if inputs.get("model") == model), None)
    inputs = _inputs(samplers, sampler)
    audio = _inputs(_nodes(graph, MultiTalkEncodeAudio), _source(inputs, "audio_embeds"))
    condition = _inputs(_nodes(graph, MultiTalkCondition), _source(inputs, "conditioning"))
    return (
        _widgets(graph, MultiTalkSampler, inputs),
        _widgets(graph, MultiTalkEncodeAudio, audio),
        _widgets(graph, MultiTalkCondition, condition),
    )


def _nodes(graph: Mapping[str, Any], kind: type[io.ComfyNode]) -> dict[str, Inputs]:
    """The inputs of all nodes of a kind, by their ids."""
    node_id = kind.define_schema().node_id
    return {number: node.get("inputs", {}) for number, node in graph.items() if node.get("class_type") == node_id}


def _inputs(nodes: Mapping[str, Inputs], number: str | None) -> Inputs:
    """The inputs of node `number`; of the first one where it is not among `nodes`."""
    return nodes[number] if number is not None and number in nodes else next(iter(nodes.values()), {})


def _source(inputs: Inputs, name: str) -> str | None:
    """The id of the node that an input is linked to."""
    return inputs[name][0] if isinstance(inputs.get(name), list) else None


def _widgets(graph: Mapping[str, Any], kind: type[io.ComfyNode], inputs: Inputs) -> dict[str, Any]:
    """A value for each widget: the node's, that of a primitive node linked to it, or the default."""
    values = {}
    for widget in kind.define_schema().inputs:
        if isinstance(widget, io.WidgetInput):
            value = inputs.get(widget.id)
            if isinstance(value, list):
                value = graph.get(value[0], {}).get("inputs", {}).get("value")
            values[widget.id] = widget.default if value is None or isinstance(value, list) else value
    return values
