"""Loads the pack as ComfyUI does: by path, under a name with a dash, with the stand-ins in ComfyUI's place."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from . import comfy_standin

PACK = Path(__file__).resolve().parents[2]
NAME = "/comfy/custom_nodes/comfyui-multitalk"


def load(models: Path, work: Path) -> ModuleType:
    """The pack's root module; `models` and `work` are the stand-ins' folders."""
    comfy_standin.install(models, work)
    for name in [name for name in sys.modules if name.startswith(NAME)]:
        del sys.modules[name]
    spec = importlib.util.spec_from_file_location(NAME, PACK / "__init__.py", submodule_search_locations=[str(PACK)])
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    spec.loader.exec_module(module)
    return module


def node_classes(module: ModuleType) -> dict[str, type]:
    """The pack's node classes by their ids, in the order of its list."""

    async def collect() -> list[type]:
        extension = await module.comfy_entrypoint()
        return await extension.get_node_list()

    return {node.GET_SCHEMA().node_id: node for node in asyncio.run(collect())}


def describe(node: type) -> dict[str, Any]:
    """Facts that people's workflows depend on: inputs with their types, defaults and ranges, and outputs."""
    schema = node.GET_SCHEMA()
    return {
        "display_name": schema.display_name,
        "category": schema.category,
        "output_node": schema.is_output_node,
        "inputs": [_describe_input(socket) for socket in schema.inputs],
        "outputs": [[socket.io_type, socket.options.get("display_name")] for socket in schema.outputs],
    }


def _describe_input(socket: Any) -> dict[str, Any]:
    facts = {"id": socket.id, "type": socket.io_type, "optional": socket.optional}
    ranges = {
        key: socket.options[key] for key in ("min", "max", "step", "control_after_generate") if key in socket.options
    }
    is_file_list = socket.io_type == "COMBO" and "default" not in socket.options
    if socket.io_type == "COMBO" and not is_file_list and socket.id != "adapter":
        ranges["options"] = socket.choices
    default = None if is_file_list else socket.default
    return facts | ranges | ({} if default is None else {"default": default})
