"""A workflow and its two forms: the page's and the queue's."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

PACK = Path(__file__).resolve().parents[1]
OURS = json.loads((PACK / "tests" / "frozen_nodes.json").read_text())
VERSION = re.search(r'(?m)^version = "(.*)"$', (PACK / "pyproject.toml").read_text()).group(1)
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "BOUNDING_BOXES")
GAP = 110  # between nodes; the page's newer look draws them a little taller than they say
TITLE = 30  # a node's title bar stands above its position
NOTE_WIDTH = 420
COLUMNS = (  # from left to right: the group's title, its nodes' width, and the nodes in it
    (
        "Picture and voice",
        300,
        (
            "MultiTalkLoadImage",
            "MultiTalkLoadAudio",
            "LoadMediaPipeFaceLandmarker",
            "MediaPipeFaceLandmarker",
            "MultiTalkSpeaker",
            "MultiTalkLongVideoOptions",
        ),
    ),
    ("Who speaks when", 400, ("MultiTalkSpeakers", "MultiTalkDialogue", "MultiTalkSplitRecording")),
    (
        "Model files",
        440,
        (
            "MultiTalkLoadModel",
            "MultiTalkLoadLora",
            "MultiTalkLoadAudioEncoder",
            "MultiTalkLoadVAE",
            "MultiTalkLoadImageEncoder",
            "MultiTalkLoadTextEncoder",
        ),
    ),
    ("Before the run", 420, ("MultiTalkPreflight",)),
    ("Encoding", 380, ("MultiTalkEncodeAudio", "MultiTalkCondition")),
    ("Frames", 420, ("MultiTalkSampler", "MultiTalkFal")),
    ("Video", 380, ("SaveVideo",)),
)
HEIGHTS = {  # of what a node shows beside its rows: a picture, a player, a text
    "MultiTalkLoadImage": 250,
    "MultiTalkLoadAudio": 60,
    "MultiTalkLoadModel": 60,
    "MultiTalkEncodeAudio": 60,
    "MultiTalkCondition": 200,
    "MultiTalkDialogue": 160,
    "MultiTalkSpeakers": 300,
    "MultiTalkSampler": 290,
    "MultiTalkPreflight": 340,
    "SaveVideo": 380,
}

# Core's nodes: sockets in, widgets, sockets out.
CORE: dict[str, tuple[list[tuple[str, str]], list[str], list[tuple[str, str]]]] = {
    "LoadMediaPipeFaceLandmarker": ([], ["model_name"], [("FACE_DETECTION_MODEL", "FACE_DETECTION_MODEL")]),
    "MediaPipeFaceLandmarker": (
        [("face_detection_model", "FACE_DETECTION_MODEL"), ("image", "IMAGE")],
        ["detector_variant", "num_faces", "min_confidence", "missing_frame_fallback"],
        [("FACE_LANDMARKS", "face_landmarks"), ("BOUNDING_BOX", "bboxes")],
    ),
    "SaveVideo": ([("video", "VIDEO")], ["filename_prefix", "format", "codec"], []),
}
PAGE_WIDGETS = {"MultiTalkLoadImage": ["image"], "MultiTalkLoadAudio": [None, None]}  # of the page itself, last
QUEUE_EXTRAS = {"SaveVideo": {"format.codec": "auto"}}  # what newer versions of core call its codec

# Widgets that an app shows, by kind of node.
APP_WIDGETS = {
    "MultiTalkLoadImage": "image",
    "MultiTalkLoadAudio": "audio",
    "MultiTalkCondition": "prompt",
    "MultiTalkSampler": "seed",
    "MultiTalkFal": "prompt",
}

HUB = "https://huggingface.co"
COMFY = f"{HUB}/Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files"
KIJAI = f"{HUB}/Kijai/WanVideo_comfy/resolve/main"
MODELS = {
    "wan2.1_i2v_480p_14B_fp8_scaled.safetensors": ("diffusion_models", f"{COMFY}/diffusion_models"),
    "WanVideo_2_1_Multitalk_14B_fp8_e4m3fn.safetensors": ("diffusion_models", KIJAI),
    "Wan2_1-InfiniTetalk-Single_fp16.safetensors": ("diffusion_models", f"{KIJAI}/InfiniteTalk"),
    "SoulX-FlashTalk-14B": ("diffusers", f"{HUB}/Soul-AILab"),  # a folder, which the page cannot fetch
    "umt5_xxl_fp8_e4m3fn_scaled.safetensors": ("text_encoders", f"{COMFY}/text_encoders"),
    "clip_vision_h.safetensors": ("clip_vision", f"{COMFY}/clip_vision"),
    "wan_2.1_vae.safetensors": ("vae", f"{COMFY}/vae"),
    "wav2vec2-chinese-base_fp16.safetensors": (
        "audio_encoders",
        f"{HUB}/Kijai/wav2vec2_safetensors/resolve/main",
    ),
    "lightx2v_I2V_14B_480p_cfg_step_distill_rank64_bf16.safetensors": ("loras", f"{KIJAI}/Lightx2v"),
    "mediapipe_face_fp32.safetensors": ("detection", f"{HUB}/Comfy-Org/mediapipe/resolve/main/detection"),
}


@dataclass(frozen=True)
class Link:
    """A link between two nodes, by their numbers; in the order of the page's form."""

    number: int
    source: int
    source_slot: int
    target: int
    target_slot: int
    io_type: str


@dataclass
class Graph:
    """A workflow.

    Attributes:
        name: of the page's file, which the page shows.
        note: for the reader, in Markdown.
        is_app: the page opens it as a form of a few widgets, with the video.
        nodes: kinds and inputs by number; an input is a value, or (node, output) of another.
    """

    name: str
    note: str
    is_app: bool = False
    nodes: dict[str, tuple[str, dict[str, Any]]] = field(default_factory=dict)

    @property
    def stem(self) -> str:
        """The page's file without its ending."""
        return f"{self.name}.app" if self.is_app else self.name

    def add(self, kind: str, **inputs: Any) -> str:
        """Adds a node and returns its number."""
        number = str(len(self.nodes) + 1)
        self.nodes[number] = (kind, inputs)
        return number

    def api(self) -> dict[str, Any]:
        """The queue's form."""
        prompt = {}
        for number, (kind, inputs) in self.nodes.items():
            values = {name: list(value) if isinstance(value, tuple) else value for name, value in inputs.items()}
            defaults = {w["id"]: queue_value(w.get("default")) for w in widgets_of(kind) if w["id"] not in values}
            extras = QUEUE_EXTRAS.get(kind, {})
            title = OURS[kind]["display_name"] if kind in OURS else kind
            prompt[number] = {"class_type": kind, "inputs": values | defaults | extras, "_meta": {"title": title}}
        return prompt

    def page(self) -> dict[str, Any]:
        """The page's form."""
        places, groups = self.layout()
        links = self.links()
        nodes = [self.page_node(number, places[number], links) for number in self.nodes]
        note_id = len(nodes) + 1
        return {
            "id": str(uuid5(NAMESPACE_URL, self.name)),
            "revision": 0,
            "last_node_id": note_id,
            "last_link_id": len(links),
            "nodes": [*nodes, _note(note_id, self.note)],
            "links": [list(vars(link).values()) for link in links],
            "groups": groups,
            "config": {},
            "extra": self._app() if self.is_app else {},
            "version": 0.4,
        }

    def links(self) -> list[Link]:
        """All links, node by node."""
        links = []
        for number, (kind, inputs) in self.nodes.items():
            for slot, (name, _) in enumerate(sockets_of(kind)):
                if name in inputs:
                    source, source_slot = inputs[name]
                    io_type = outputs_of(self.nodes[source][0])[source_slot][0]
                    links.append(Link(len(links) + 1, int(source), source_slot, int(number), slot, io_type))
        return links

    def layout(self) -> tuple[dict[str, tuple[list[int], list[int]]], list[dict[str, Any]]]:
        """Position and size of each node, column by column, and a group around each column."""
        places: dict[str, tuple[list[int], list[int]]] = {}
        groups: list[dict[str, Any]] = []
        left = 0
        for title, width, kinds in COLUMNS:
            column = sorted(
                (n for n in self.nodes if self.nodes[n][0] in kinds), key=lambda n: kinds.index(self.nodes[n][0])
            )
            if not column:
                continue
            top = 0
            for number in column:
                height = _height(self.nodes[number][0])
                places[number] = ([left, top], [width, height])
                top += height + GAP
            bounding = [left - 20, -TITLE - 60, width + 40, top - GAP + TITLE + 120]
            groups.append(
                {"id": len(groups) + 1, "title": title, "bounding": bounding, "color": "#3f789e", "font_size": 24}
                | {"flags": {}}
            )
            left += width + 110
        return places, groups

    def page_node(
        self, number: str, place: tuple[list[int], list[int]], links: Sequence[Link], linked_widgets: Sequence[str] = ()
    ) -> dict[str, Any]:
        """A node in the page's form; widgets that a link gives their value have a socket too."""
        kind, _ = self.nodes[number]
        incoming = {link.target_slot: link.number for link in links if link.target == int(number)}
        types = {widget["id"]: widget["type"] for widget in widgets_of(kind)}
        inputs: list[dict[str, Any]] = [{"name": name, "type": io_type} for name, io_type in sockets_of(kind)]
        inputs += [{"name": name, "type": types[name], "widget": {"name": name}} for name in linked_widgets]
        outgoing = [link for link in links if link.source == int(number)]
        values, models = self._values(number)
        properties = {"Node name for S&R": kind, "cnr_id": "multitalk" if kind in OURS else "comfy-core"}
        properties["ver"] = VERSION if kind in OURS else "0.33.0"
        return {
            "id": int(number),
            "type": kind,
            "pos": place[0],
            "size": place[1],
            "flags": {},
            "order": self._depth(number),
            "mode": 0,
            "inputs": [entry | {"link": incoming.get(slot)} for slot, entry in enumerate(inputs)],
            "outputs": [
                {
                    "name": name,
                    "type": io_type,
                    "links": [link.number for link in outgoing if link.source_slot == slot],
                }
                for slot, (io_type, name) in enumerate(outputs_of(kind))
            ],
            "properties": properties | ({"models": models} if models else {}),
            "widgets_values": values,
        }

    def _app(self) -> dict[str, Any]:
        """The form that the page shows in place of the graph."""
        shown = [number for number, (kind, _) in self.nodes.items() if kind in APP_WIDGETS]
        shown.sort(key=lambda number: list(APP_WIDGETS).index(self.nodes[number][0]))
        widgets = [[number, APP_WIDGETS[self.nodes[number][0]]] for number in shown]
        videos = [number for number, (kind, _) in self.nodes.items() if kind == "SaveVideo"]
        return {"linearMode": True, "linearData": {"inputs": widgets, "outputs": videos}}

    def _values(self, number: str) -> tuple[list[Any], list[dict[str, str]]]:
        """A node's widget values in the page's order, and the public addresses of the files it names."""
        kind, inputs = self.nodes[number]
        values: list[Any] = []
        for widget in widgets_of(kind):
            values.append(inputs.get(widget["id"], widget.get("default")))
            if widget.get("control_after_generate"):
                values.append("fixed")
        names = [value for value in values if isinstance(value, str) and value in MODELS]
        models = [{"name": n, "url": f"{MODELS[n][1]}/{n}", "directory": MODELS[n][0]} for n in names]
        return [*values, *PAGE_WIDGETS.get(kind, [])], models

    def _depth(self, number: str) -> int:
        sources = [value[0] for value in self.nodes[number][1].values() if isinstance(value, tuple)]
        return 1 + max((self._depth(source) for source in sources), default=-1)


def widgets_of(kind: str) -> list[dict[str, Any]]:
    """The widgets of a node, with their defaults."""
    if kind in CORE:
        return [{"id": name, "type": "STRING"} for name in CORE[kind][1]]
    return [entry for entry in OURS[kind]["inputs"] if entry["type"] in WIDGETS]


def names_on_page(kind: str) -> list[str | None]:
    """The widgets of a node by the places of their values on the page; None is the page's own, after a seed."""
    names: list[str | None] = []
    for widget in widgets_of(kind):
        names += [widget["id"], None] if widget.get("control_after_generate") else [widget["id"]]
    return names


def sockets_of(kind: str) -> list[tuple[str, str]]:
    """Names and types of a node's inputs that are no widgets."""
    if kind in CORE:
        return CORE[kind][0]
    return [(entry["id"], entry["type"]) for entry in OURS[kind]["inputs"] if entry["type"] not in WIDGETS]


def outputs_of(kind: str) -> list[tuple[str, str]]:
    """Types and names of a node's outputs."""
    return CORE[kind][2] if kind in CORE else [(io_type, name) for io_type, name in OURS[kind]["outputs"]]


def queue_value(value: Any) -> Any:
    """A widget's value in the queue, where a bare list is a link."""
    return {"__value__": value} if isinstance(value, list) else value


def _height(kind: str) -> int:
    """Pixels that the page needs for a node: rows of sockets and widgets, prompts, and what it shows beside them."""
    rows = max(len(sockets_of(kind)), len(outputs_of(kind)))
    widgets = widgets_of(kind)
    lines = len(widgets) + sum(bool(widget.get("control_after_generate")) for widget in widgets)
    text = sum(90 for widget in widgets if "prompt" in widget["id"])
    return 14 + 20 * rows + 24 * lines + text + HEIGHTS.get(kind, 0)


def _note(number: int, text: str) -> dict[str, Any]:
    place = {"pos": [-NOTE_WIDTH - 70, -TITLE - 30], "size": [NOTE_WIDTH, 130 + len(text) // 2]}
    return {
        "id": number, "type": "MarkdownNote", **place, "flags": {}, "order": 0,
        "mode": 0, "inputs": [], "outputs": [], "title": "Read me", "properties": {}, "widgets_values": [text],
    }  # fmt: skip
