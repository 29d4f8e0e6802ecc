"""Runs an API workflow on our node classes as ComfyUI would: checked, then each node once, along the links."""

from __future__ import annotations

import asyncio
import inspect
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from multitalk_pack.pipeline.media.sound import read_sound
from PIL import Image

from .comfy_standin import executing
from .pack import describe


class Rejected(ValueError):
    """ComfyUI's answer with HTTP 400."""


CONVERSIONS = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}  # what ComfyUI does to a widget's value


def check(prompt: dict[str, Any], nodes: dict[str, type]) -> None:
    """Converts the widgets' values as ComfyUI does.

    Raises:
        Rejected: an unknown node, a missing or wrong input, a link of the wrong type or in a circle.
    """
    _check_circles(prompt)
    for number, entry in prompt.items():
        kind = entry["class_type"]
        if kind in CORE:
            if CORE_INPUTS[kind] not in entry["inputs"]:
                raise Rejected(f"{number} {kind}: required_input_missing {CORE_INPUTS[kind]}")
            for name, value in entry["inputs"].items():
                if isinstance(value, list):
                    _link_type(f"{number} {kind}.{name}", value, prompt, nodes)
            continue
        if kind not in nodes:
            raise Rejected(f"{number}: no node {kind}")
        sockets = {socket.id: socket for socket in nodes[kind].GET_SCHEMA().inputs}
        unknown = set(entry["inputs"]) - set(sockets)
        if unknown:
            raise Rejected(f"{number} {kind}: unknown inputs {sorted(unknown)}")
        for name, socket in sockets.items():
            if name in entry["inputs"]:
                _check_value(f"{number} {kind}.{name}", entry["inputs"][name], socket, prompt, nodes)
            elif not socket.optional:
                raise Rejected(f"{number} {kind}: required_input_missing {name}")


def _check_value(where: str, value: Any, socket: Any, prompt: dict[str, Any], nodes: dict[str, type]) -> None:
    if isinstance(value, list) and value:
        link_type = _link_type(where, value, prompt, nodes)
        if link_type not in socket.io_type.split(","):
            raise Rejected(f"{where}: return_type_mismatch {link_type} into {socket.io_type}")
    elif isinstance(value, dict) and "__value__" in value:  # a list that is no link
        number, name = where.split(" ", maxsplit=1)[0], where.rpartition(".")[2]
        prompt[number]["inputs"][name] = value["__value__"]
    elif socket.io_type == "COMBO" and value not in socket.choices:
        raise Rejected(f"{where}: value_not_in_list {value!r}, have {socket.choices}")
    elif socket.io_type in CONVERSIONS:
        number, name = where.split(" ", maxsplit=1)[0], where.rpartition(".")[2]
        try:
            value = prompt[number]["inputs"][name] = CONVERSIONS[socket.io_type](value)
        except (ValueError, TypeError, OverflowError) as error:
            raise Rejected(f"{where}: invalid_input_type {value!r}") from error
        low, high = socket.options.get("min"), socket.options.get("max")
        if not (low is None or value >= low) or not (high is None or value <= high):
            raise Rejected(f"{where}: {value} outside {low}..{high}")


def _link_type(where: str, link: list, prompt: dict[str, Any], nodes: dict[str, type]) -> str:
    """The type that comes along a link."""
    if len(link) != 2 or not isinstance(link[0], str) or type(link[1]) is not int:
        raise Rejected(f"{where}: bad_linked_input {link}")
    source = prompt.get(link[0], {}).get("class_type")
    if source not in CORE and source not in nodes:
        raise Rejected(f"{where}: no node {link[0]}")
    types = CORE[source] if source in CORE else [kind for kind, _ in describe(nodes[source])["outputs"]]
    if not 0 <= link[1] < len(types):
        raise Rejected(f"{where}: {source} has no output {link[1]}")
    return types[link[1]]


def _check_circles(prompt: dict[str, Any]) -> None:
    def follow(number: str, above: tuple[str, ...]) -> None:
        if number in above:
            raise Rejected(f"{number}: dependency_cycle")
        for value in prompt.get(number, {}).get("inputs", {}).values():
            if isinstance(value, list) and value and isinstance(value[0], str):
                follow(value[0], (*above, number))

    for number in prompt:
        follow(number, ())


class Runner:
    """Executes workflows and keeps results by what went into them: a second queueing repeats what changed."""

    def __init__(self, nodes: dict[str, type], folder: Path):
        self.nodes, self.folder = nodes, folder  # ComfyUI's input folder
        self.cache: dict[str, tuple] = {}
        self.ran: list[str] = []

    def run(self, prompt: dict[str, Any]) -> dict[str, tuple]:
        """The outputs of every node, by its number."""
        self._start(prompt)
        return {number: self._outputs(number, prompt) for number in prompt}

    def run_node(self, prompt: dict[str, Any], number: str) -> tuple:
        """The outputs of one node, for which only the nodes before it are run."""
        self._start(prompt)
        return self._outputs(number, prompt)

    def _start(self, prompt: dict[str, Any]) -> None:
        check(prompt, self.nodes)
        self.ran = []
        sys.modules["server"].PromptServer.instance.prompt_queue.graph = prompt

    def _outputs(self, number: str, prompt: dict[str, Any]) -> tuple:
        key = self._key(number, prompt)
        if key not in self.cache:
            entry = prompt[number]
            inputs = {
                name: self._outputs(value[0], prompt)[value[1]] if isinstance(value, list) and value else value
                for name, value in entry["inputs"].items()
            }
            with executing(number):
                self.cache[key] = self._execute(entry["class_type"], inputs)
            self.ran.append(entry["class_type"])
        return self.cache[key]

    def _input(self, name: str) -> Path:
        """A file that core's loaders list."""
        file = self.folder / name
        if not file.is_file():
            raise Rejected(f"value_not_in_list {name!r}")
        return file

    def _key(self, number: str, prompt: dict[str, Any]) -> str:
        entry = prompt[number]
        inputs = [
            (name, (self._key(value[0], prompt), value[1]) if isinstance(value, list) and value else value)
            for name, value in sorted(entry["inputs"].items())
        ]
        return repr((entry["class_type"], inputs))

    def _execute(self, kind: str, inputs: dict[str, Any]) -> tuple:
        if kind == "LoadImage":
            picture = np.asarray(Image.open(self._input(inputs["image"])).convert("RGB")).astype("float32") / 255
            return torch.from_numpy(picture)[None], torch.zeros(1, 64, 64)
        if kind == "LoadAudio":
            sound = read_sound(self._input(inputs["audio"]))
            return ({"waveform": sound.samples[None], "sample_rate": sound.rate_hz},)
        if kind == "SaveVideo":
            return (inputs["video"],)
        if kind == "LoadMediaPipeFaceLandmarker":
            return (None,)
        if kind == "MediaPipeFaceLandmarker":  # two faces, as from a detector: the surer one first
            height, width = inputs["image"].shape[1:3]
            half = {"y": 0.1 * height, "width": 0.4 * width, "height": 0.8 * height, "label": "face"}
            return None, [[half | {"x": 0.55 * width, "score": 0.9}, half | {"x": 0.05 * width, "score": 0.8}]]
        node = self.nodes[kind]
        node.hidden = SimpleNamespace(prompt=sys.modules["server"].PromptServer.instance.prompt_queue.graph)
        result = node.execute(**inputs)
        if inspect.iscoroutine(result):
            result = asyncio.run(result)
        return result.args


CORE = {
    "LoadImage": ["IMAGE", "MASK"],
    "LoadAudio": ["AUDIO"],
    "LoadMediaPipeFaceLandmarker": ["FACE_DETECTION_MODEL"],
    "MediaPipeFaceLandmarker": ["FACE_LANDMARKS", "BOUNDING_BOX"],
    "SaveVideo": [],
}
CORE_INPUTS = {  # what each cannot do without
    "LoadImage": "image",
    "LoadAudio": "audio",
    "LoadMediaPipeFaceLandmarker": "model_name",
    "MediaPipeFaceLandmarker": "image",
    "SaveVideo": "video",
}
