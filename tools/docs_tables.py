"""Generated tables of the pages, from schemas, tests, prices and stored measurements."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from urllib.parse import quote

import make_workflows
import torch
from multitalk_pack.benchmarks.report import Table, machine_line
from multitalk_pack.pipeline.config import GenerationConfig, Recipe, Resolution
from multitalk_pack.pipeline.errors import Problems
from multitalk_pack.pipeline.generation.run_spec import RunSpec, make_run_spec
from multitalk_pack.pipeline.host import TorchHost
from multitalk_pack.pipeline.memory.placement import GB, Footprint, MemoryConfig, plan_placement
from multitalk_pack.pipeline.models.transformer.model import MultiTalkTransformer
from multitalk_pack.pipeline.preflight.checks import with_memory
from multitalk_pack.pipeline.preflight.estimate import estimate as estimate_run
from multitalk_pack.pipeline.remote.endpoints import ENDPOINTS
from multitalk_pack.pipeline.remote.pricing import PriceRule, dollars, estimate
from multitalk_pack.pipeline.shapes import FPS, LatentSize
from multitalk_pack.pipeline.weights.fit import TransformerFacts
from support.packagings import PACKAGINGS

PACK = Path(__file__).resolve().parents[1]
RESULTS = PACK / "benchmarks" / "results"
WEIGHT_TESTS = PACK / "tests" / "pipeline" / "weights"
PRICED_FRAMES = (41, 81, 85, 145, 241)  # the card's ends, its default, and both sides of the surcharge
CARDS_GB = (8, 12, 16, 24, 48)
CARD_SIZES = {"480p, 81 frames": (480, 832, 81), "480p, 97 frames": (480, 832, 97), "720p, 81 frames": (720, 1280, 81)}
BITS = {"bf16": 16, "fp8, int8": 8, "Q4_K": 4.5}  # of a block's number
WINDOW_480P = LatentSize.of_video(81, 480, 832)
NOTHING_STORED = "No measurement is stored yet."


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def nodes(classes: dict[str, type]) -> str:
    """Every node with its help page, group by group as in the menu."""
    rows = []
    for name, node in classes.items():
        schema = node.GET_SCHEMA()
        rows.append((schema.category, f"[{schema.display_name}](../web/docs/{name}/en.md)", schema.description))
    return table(("Menu", "Node", "What it does"), rows)


def packagings() -> str:
    """Packagings that the tests of the weights load and compare with the plain file."""
    components = _test_module("test_components.py")
    parts = {
        "Video VAE": _cases(components, "test_vae"),
        "Text encoder": _cases(components, "test_text_encoder"),
        "Image encoder": _cases(components, "test_image_encoder"),
        "Audio encoder": _cases(components, "test_audio_encoder"),
        "LoRA": _cases(_test_module("test_lora.py"), "test_every_layout_is_applied_as_if_merged"),
    }
    by_source: dict[str, list[str]] = {}
    for packaging in PACKAGINGS:
        by_source.setdefault(packaging.publisher, []).append(packaging.name)
    kitchen = _cases(_test_module("test_packagings.py"), "test_what_comfy_kitchen_decodes")
    by_source["any, where comfy-kitchen is installed"] = kitchen
    transformer = table(
        ("Transformer and audio adapter, from", "Packagings"), ((k, "; ".join(v)) for k, v in by_source.items())
    )
    encoders = table(("Part", "Packagings"), ((part, "; ".join(cases)) for part, cases in parts.items()))
    return f"{transformer}\n\n{encoders}"


def refusals() -> str:
    """Files that are refused by name, from the tests of the refusals."""
    tests = _test_module("test_refusals.py")
    test_names = {"Model": "a_wrong_base_is_named", "Adapter": "a_wrong_adapter_is_named",
              "Encoders and VAE": "a_wrong_part_is_named", "Damaged": "half_converted_files_are_refused",
              "LoRA": "a_lora_that_fits_nothing_is_refused"}  # fmt: skip
    rows = ((part, "; ".join(_cases(tests, f"test_{test}"))) for part, test in test_names.items())
    return table(("Chosen as", "Refused by name"), rows)


def files() -> str:
    """The files that the workflows name: where they are, where they go, how large they are, what they are for."""
    about = json.loads((PACK / "docs" / "files.json").read_text(encoding="utf-8"))
    rows = []
    for name, (folder, address) in make_workflows.MODELS.items():
        facts = about[name]
        rows.append((f"[{name}]({address}/{name})", f"`models/{folder}`", f"{facts['gb']:g} GB", facts["for"]))
    return table(("File", "Folder", "Size", "What it is for"), rows)


def workflows() -> str:
    """The workflow files with their pictures."""
    rows = []
    for graph in make_workflows.build().values():
        _, _, note = graph.note.partition("\n")
        last = note.strip().split("\n\n")[-1].replace("\n", " ")
        link = f"../workflows/{quote(graph.stem)}"
        rows.append((f"[{graph.name}]({link}.json)", last, f'<img src="{link}.jpg" width="128" alt="{graph.name}">'))
    return table(("Workflow", "What to know", "Picture"), rows)


def prices() -> str:
    """Prices of fal, by the rules of the remote node itself."""
    by_rule: dict[PriceRule, list[str]] = {}
    for endpoint in ENDPOINTS.values():
        by_rule.setdefault(endpoint.price, []).append(f"`{endpoint.id}`")
    rows = []
    for rule, endpoints in by_rule.items():
        for frames in PRICED_FRAMES:
            duration_s = frames / FPS
            small, large = (estimate(rule, duration_s, resolution) for resolution in (Resolution.P480, Resolution.P720))
            prices = dollars(small.usd), dollars(large.usd_at_most)
            rows.append((str(frames), f"{duration_s:g} s", *prices, ", ".join(endpoints)))
    head = ("Frames", "Length", "480p", "720p at most", f"Endpoints (prices read {next(iter(by_rule)).as_of})")
    return table(head, rows)


def placements() -> str:
    """Number of the published network's blocks that stay on cards of each size, by packaging."""
    footprints = _published_footprints()
    rows = ((f"{gb} GB", *(_num_resident(packaging, gb * GB) for packaging in footprints)) for gb in CARDS_GB)
    return table(("Free memory", *BITS), rows)


@lru_cache
def _published_footprints() -> tuple[Footprint, ...]:
    """Those of the published network in the packagings of `BITS`."""
    with torch.device("meta"):
        plain = Footprint.of(MultiTalkTransformer().bfloat16())
    return tuple(replace(plain, block_bytes=round(plain.block_bytes * bits / 16)) for bits in BITS.values())


def _num_resident(footprint: Footprint, free: int) -> str:
    constants = footprint.constant_bytes(WINDOW_480P, num_prompts=2, num_voices=2)
    placement = plan_placement(footprint, MemoryConfig(), WINDOW_480P, free, constants)
    if placement.estimate > free:
        return f"wants {placement.estimate / GB:.1f} GB"
    return str(placement.resident_blocks) if placement.streams else "all"


def cards() -> str:
    """The windows that run on cards of each size, by packaging: blocks that stay there, or what a refusal says."""
    rows = []
    for free_gb in CARDS_GB[:-1]:
        for name, (height, width, num_frames) in CARD_SIZES.items():
            for num_speakers in (1, 2):
                config = GenerationConfig(num_frames=num_frames, window_frames=num_frames)
                spec = make_run_spec(config, Recipe.MULTITALK, (height, width), num_frames, num_speakers)
                cells = (_fit(spec, footprint, free_gb * GB) for footprint in _published_footprints())
                rows.append((f"{free_gb} GB", name, str(num_speakers), *cells))
    return table(("Free memory", "Window", "Speakers", *BITS), rows)


def _fit(spec: RunSpec, footprint: Footprint, free: int) -> str:
    problems, facts = Problems(), TransformerFacts(footprint, 40, (12, 768), 4096, 1280)
    run = with_memory(estimate_run(spec), spec, facts, MemoryConfig(), problems, CardHost(free))
    if problems.errors:
        _, _, cure = str(problems.errors[0]).partition(" are free. ")
        return f"no, needs {run.placement.estimate / GB:.1f} GB. {cure}"
    stay = f"{run.placement.resident_blocks} of 40 blocks" if run.placement.streams else "all blocks"
    return f"{stay}, {run.placement.estimate / GB:.1f} GB"


class CardHost(TorchHost):
    """A card with so many bytes free, which nothing is run on."""

    def __init__(self, free: int):
        super().__init__("cuda")
        self._free = free

    def free_memory(self) -> int:
        """Bytes."""
        return self._free


def measurements(*prefixes: str) -> str:
    """Stored tables of `python -m benchmarks` whose titles start so, each with its machine."""
    parts = []
    for file in sorted(RESULTS.glob("*.json")):
        for title, part in json.loads(file.read_text(encoding="utf-8")).items():
            if title.startswith(prefixes):
                parts += [_bold_heads(Table(title, part["rows"]).markdown()), machine_line(part["machine"])]
    return "\n\n".join(parts) or NOTHING_STORED


def _bold_heads(text: str) -> str:
    return re.sub(r"(?m)^#+ (.*)$", r"**\1**", text.strip())


def _test_module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"documented_{Path(name).stem}", WEIGHT_TESTS / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _cases(module: ModuleType, test: str) -> list[str]:
    """The names that a parametrised test is run with."""
    marks = [mark for mark in getattr(module, test).pytestmark if mark.name == "parametrize"]
    return [str(case) for mark in marks for case in mark.args[1]]
