"""Writes `workflows/*.json` (for the page) and `workflows/api/*.json` (for the queue) from one description each."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

PACK = Path(__file__).resolve().parents[1]
OURS = json.loads((PACK / "tests" / "frozen_nodes.json").read_text())
VERSION = "0.1.0"
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
GAP = 110  # between nodes; the page's newer look draws them a little taller than they say
TITLE = 30  # a node's title bar stands above its position
NOTE_WIDTH = 420
COLUMNS = (  # from left to right: the group's title, its nodes' width, and the nodes in it
    (
        "Input",
        300,
        ("MultiTalkExample", "MultiTalkSpeaker", "MultiTalkLongVideoOptions"),
    ),
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
    ("What is heard and seen", 380, ("MultiTalkEncodeAudio", "MultiTalkCondition")),
    ("Frames", 420, ("MultiTalkSampler", "MultiTalkFal")),
    ("Video", 380, ("SaveVideo",)),
)

# Core's node: sockets in, widgets, sockets out.
CORE = {"SaveVideo": ([("video", "VIDEO")], ["filename_prefix", "format", "codec"], [])}
QUEUE_EXTRAS = {"SaveVideo": {"format.codec": "auto"}}  # what newer versions of core call its codec

HUB = "https://huggingface.co"
COMFY = f"{HUB}/Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files"
KIJAI = f"{HUB}/Kijai/WanVideo_comfy/resolve/main"
MODELS = {
    "wan2.1_i2v_480p_14B_fp8_scaled.safetensors": ("diffusion_models", f"{COMFY}/diffusion_models"),
    "WanVideo_2_1_Multitalk_14B_fp8_e4m3fn.safetensors": ("diffusion_models", KIJAI),
    "Wan2_1-InfiniTetalk-Single_fp16.safetensors": ("diffusion_models", f"{KIJAI}/InfiniteTalk"),
    "umt5_xxl_fp8_e4m3fn_scaled.safetensors": ("text_encoders", f"{COMFY}/text_encoders"),
    "clip_vision_h.safetensors": ("clip_vision", f"{COMFY}/clip_vision"),
    "wan_2.1_vae.safetensors": ("vae", f"{COMFY}/vae"),
    "wav2vec2-chinese-base_fp16.safetensors": (
        "audio_encoders",
        f"{HUB}/Kijai/wav2vec2_safetensors/resolve/main",
    ),
    "lightx2v_I2V_14B_480p_cfg_step_distill_rank64_bf16.safetensors": ("loras", f"{KIJAI}/Lightx2v"),
}


@dataclass
class Graph:
    """A workflow: its nodes by number, what is put into them, and notes for the reader."""

    title: str
    note: str
    nodes: dict[str, tuple[str, dict[str, Any]]] = field(default_factory=dict)

    def add(self, kind: str, **inputs: Any) -> str:
        """A new node; an input is a value, or (node, output) of another."""
        number = str(len(self.nodes) + 1)
        self.nodes[number] = (kind, inputs)
        return number

    def api(self) -> dict[str, Any]:
        """The queue's form."""
        prompt = {}
        for number, (kind, inputs) in self.nodes.items():
            values = {name: list(value) if isinstance(value, tuple) else value for name, value in inputs.items()}
            defaults = {w["id"]: w.get("default") for w in _widgets(kind) if w["id"] not in values}
            extras = QUEUE_EXTRAS.get(kind, {})
            title = OURS[kind]["display_name"] if kind in OURS else kind
            prompt[number] = {"class_type": kind, "inputs": values | defaults | extras, "_meta": {"title": title}}
        return prompt

    def page(self) -> dict[str, Any]:
        """The page's form."""
        links: list[list[Any]] = []
        places, groups = self._layout()
        nodes = [self._page_node(int(number), places[number], links) for number in self.nodes]
        for node in nodes:
            for slot, output in enumerate(node["outputs"]):
                output["links"] = [link[0] for link in links if link[1] == node["id"] and link[2] == slot]
        note_id = len(nodes) + 1
        nodes.append(_note(note_id, self.note))
        return {
            "id": str(uuid5(NAMESPACE_URL, self.title)),
            "revision": 0,
            "last_node_id": note_id,
            "last_link_id": len(links),
            "nodes": nodes,
            "links": links,
            "groups": groups,
            "config": {},
            "extra": {},
            "version": 0.4,
        }

    def _layout(self) -> tuple[dict[str, tuple[list[int], list[int]]], list[dict[str, Any]]]:
        """Position and size of each node, column by column, and a group around each column."""
        places: dict[str, tuple[list[int], list[int]]] = {}
        groups: list[dict[str, Any]] = []
        left = 0
        for title, width, kinds in COLUMNS:
            here = sorted(
                (n for n in self.nodes if self.nodes[n][0] in kinds), key=lambda n: kinds.index(self.nodes[n][0])
            )
            if not here:
                continue
            top = 0
            for number in here:
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

    def _page_node(self, number: int, place: tuple[list[int], list[int]], links: list[list[Any]]) -> dict[str, Any]:
        kind, inputs = self.nodes[str(number)]
        sockets, outputs = _sockets(kind), _outputs(kind)
        page_inputs = []
        for slot, (name, io_type) in enumerate(sockets):
            link = None
            if name in inputs:
                source, source_slot = inputs[name]
                link = len(links) + 1
                sent = _outputs(self.nodes[source][0])[source_slot][0]
                links.append([link, int(source), source_slot, number, slot, sent])
            page_inputs.append({"name": name, "type": io_type, "link": link})
        values, models = self._values(str(number))
        properties = {"Node name for S&R": kind, "cnr_id": "multitalk" if kind in OURS else "comfy-core"}
        properties["ver"] = VERSION if kind in OURS else "0.33.0"
        return {
            "id": number,
            "type": kind,
            "pos": place[0],
            "size": place[1],
            "flags": {},
            "order": self._depth(str(number)),
            "mode": 0,
            "inputs": page_inputs,
            "outputs": [{"name": name, "type": io_type, "links": []} for io_type, name in outputs],
            "properties": properties | ({"models": models} if models else {}),
            "widgets_values": values,
        }

    def _values(self, number: str) -> tuple[list[Any], list[dict[str, str]]]:
        """A node's widget values in the page's order, and the public addresses of the files it names."""
        kind, inputs = self.nodes[number]
        values: list[Any] = []
        for widget in _widgets(kind):
            values.append(inputs.get(widget["id"], widget.get("default")))
            if widget.get("control_after_generate"):
                values.append("fixed")
        names = [value for value in values if value in MODELS] if kind in OURS else []
        models = [{"name": n, "url": f"{MODELS[n][1]}/{n}", "directory": MODELS[n][0]} for n in names]
        return values, models

    def _depth(self, number: str) -> int:
        sources = [value[0] for value in self.nodes[number][1].values() if isinstance(value, tuple)]
        return 1 + max((self._depth(source) for source in sources), default=-1)


def _widgets(kind: str) -> list[dict[str, Any]]:
    if kind in CORE:
        return [{"id": name} for name in CORE[kind][1]]
    return [entry for entry in OURS[kind]["inputs"] if entry["type"] in WIDGETS]


def _sockets(kind: str) -> list[tuple[str, str]]:
    if kind in CORE:
        return CORE[kind][0]
    return [(entry["id"], entry["type"]) for entry in OURS[kind]["inputs"] if entry["type"] not in WIDGETS]


def _outputs(kind: str) -> list[tuple[str, str]]:
    return CORE[kind][2] if kind in CORE else [tuple(output) for output in OURS[kind]["outputs"]]


def _height(kind: str) -> int:
    """What the page needs for a node: rows of sockets, of widgets, two prompts, and the picture that comes later."""
    rows = max(len(_sockets(kind)), len(_outputs(kind)))
    widgets = _widgets(kind)
    lines = len(widgets) + sum(bool(widget.get("control_after_generate")) for widget in widgets)
    text = sum(90 for widget in widgets if "prompt" in widget["id"])
    picture = {"MultiTalkCondition": 200, "MultiTalkSampler": 290, "MultiTalkPreflight": 340, "SaveVideo": 380}.get(
        kind, 0
    )
    return 14 + 20 * rows + 24 * lines + text + picture


def _note(number: int, text: str) -> dict[str, Any]:
    place = {"pos": [-NOTE_WIDTH - 70, -TITLE - 30], "size": [NOTE_WIDTH, 130 + len(text) // 2]}
    return {
        "id": number, "type": "MarkdownNote", **place, "flags": {}, "order": 0,
        "mode": 0, "inputs": [], "outputs": [], "title": "Read me", "properties": {}, "widgets_values": [text],
    }  # fmt: skip


REAL = {
    "base": "wan2.1_i2v_480p_14B_fp8_scaled.safetensors",
    "adapter": "WanVideo_2_1_Multitalk_14B_fp8_e4m3fn.safetensors",
    "text": "umt5_xxl_fp8_e4m3fn_scaled.safetensors",
    "image": "clip_vision_h.safetensors",
    "vae": "wan_2.1_vae.safetensors",
    "audio": "wav2vec2-chinese-base_fp16.safetensors",
}
SMALL = {
    "base": "wan2.1_i2v_480p_demo.safetensors",
    "adapter": "multitalk_demo.safetensors",
    "text": "umt5_demo.safetensors",
    "image": "clip_vision_h_demo.safetensors",
    "vae": "wan_2.1_vae_demo.safetensors",
    "audio": "wav2vec2_demo.safetensors",
}
LORA = "lightx2v_I2V_14B_480p_cfg_step_distill_rank64_bf16.safetensors"
FILES_NOTE = "\n".join(f"* models/{folder}: {name}" for name, (folder, _) in MODELS.items() if name in REAL.values())


def talk(
    graph: Graph,
    files: dict[str, str],
    example: str,
    prompt: str,
    voices: int = 1,
    lora: str | None = None,
    condition: dict[str, Any] | None = None,
    sampler: dict[str, Any] | None = None,
    audio: dict[str, Any] | None = None,
    preflight: bool = False,
) -> Graph:
    """The local chain: an example, loaders, audio, condition, sampler, video; `preflight` looks at it all before."""
    shown = graph.add("MultiTalkExample", example=example)
    model = (graph.add("MultiTalkLoadModel", base=files["base"], adapter=files["adapter"]), 0)
    if lora:
        model = (graph.add("MultiTalkLoadLora", model=model, lora=lora, strength=1.0), 0)
    encoder = (graph.add("MultiTalkLoadAudioEncoder", file=files["audio"]), 0)
    sounds = {f"audio_{k}": (shown, k) for k in range(1, voices + 1)}
    heard = graph.add("MultiTalkEncodeAudio", audio_encoder=encoder, **sounds, **(audio or {}))
    coders = {
        "vae": (graph.add("MultiTalkLoadVAE", file=files["vae"]), 0),
        "image_encoder": (graph.add("MultiTalkLoadImageEncoder", file=files["image"]), 0),
        "text_encoder": (graph.add("MultiTalkLoadTextEncoder", file=files["text"]), 0),
    }
    seen = graph.add("MultiTalkCondition", image=(shown, 0), **coders, prompt=prompt, **(condition or {}))
    if preflight:
        raw = {"image": (shown, 0), "audio_encoder": encoder, **sounds, **coders}
        options = {"options": sampler["options"]} if sampler and "options" in sampler else {}
        graph.add("MultiTalkPreflight", model=model, **raw, **options)
    made = graph.add(
        "MultiTalkSampler",
        model=model,
        audio_embeds=(heard, 0),
        conditioning=(seen, 0),
        **(sampler or {}),
    )
    graph.add("SaveVideo", video=(made, 1), filename_prefix="video/MultiTalk", format="auto", codec="auto")
    return graph


def build() -> dict[str, Graph]:
    """All workflows by file name. All start from bundled examples, so that no node asks for a file one has not got."""
    one, two_drawn, photograph = "a drawn face", "two drawn faces", "a photograph"
    woman = "A woman talks to the camera in a softly lit room."
    own = "**Your own**\n\nPut *Load Image* and *Load Audio* in the Example's place.\n\n"
    files = f"{own}**Files**\n\n{FILES_NOTE}\n\n"
    quality = Graph("quality", f"# One speaker, best quality\n\n{files}40 steps with text and audio guidance.")
    lora = f"* models/loras: {LORA}"
    fast = Graph("fast", f"# One speaker, four steps\n\n{files.strip()}\n{lora}\n\nThe LoRA wants text guidance 1.")
    two = Graph(
        "two",
        f"# Two speakers\n\n{files}A Speaker node for each voice says where the person is, in "
        "percent. The drawn faces only hold the place of a photograph of two people: the 14B model is for those.",
    )
    long = Graph(
        "long", f"# A long speech\n\n{files}The length follows the audio. An interrupted run goes on where it was."
    )
    small = Graph("small", "# The small bundled model\n\nRuns with no download, on a CPU. It knows drawn faces only.")
    remote = Graph(
        "remote", f"# Made by fal\n\n{own}No model, no GPU. Put your key into FAL_KEY; every run costs money."
    )
    few = {"steps": 4, "text_scale": 1.0, "audio_scale": 2.0, "shift": 2.0, "acceleration": "high"}
    talk(quality, REAL, photograph, woman)
    talk(fast, REAL, photograph, woman, lora=LORA, sampler=few)
    left = two.add("MultiTalkSpeaker", left=0.0, top=0.0, right=50.0, bottom=100.0)
    right = two.add("MultiTalkSpeaker", speakers=(left, 0), left=50.0, top=0.0, right=100.0, bottom=100.0)
    talk(
        two, REAL, two_drawn, "Two people talk to each other.", voices=2,
        condition={"speakers": (right, 0)}, audio={"multi_audio_type": "add"},
    )  # fmt: skip
    options = long.add("MultiTalkLongVideoOptions")
    talk(
        long, REAL, photograph, woman,
        sampler={"keep_frames": False, "acceleration": "regular", "options": (options, 0)},
        preflight=True,
    )  # fmt: skip
    talk(
        small, SMALL, one, "a smiling person talks",
        condition={"resolution": "custom", "width": 128, "height": 128},
    )  # fmt: skip
    shown = remote.add("MultiTalkExample", example=photograph)
    bought = remote.add("MultiTalkFal", image=(shown, 0), audio=(shown, 1), prompt=woman)
    remote.add("SaveVideo", video=(bought, 0), filename_prefix="video/MultiTalk", format="auto", codec="auto")
    return {
        "single_speaker_quality": quality,
        "single_speaker_fast": fast,
        "two_speakers": two,
        "long_speech": long,
        "remote": remote,
        "small_model": small,
    }


def main() -> None:
    """Writes all files."""
    folder = PACK / "workflows"
    (folder / "api").mkdir(parents=True, exist_ok=True)
    for name, graph in build().items():
        (folder / f"{name}.json").write_text(json.dumps(graph.page(), indent=1, ensure_ascii=False) + "\n")
        (folder / "api" / f"{name}.json").write_text(json.dumps(graph.api(), indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
