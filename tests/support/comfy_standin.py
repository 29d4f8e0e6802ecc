"""Stand-ins for the parts of ComfyUI that the pack touches, as strict as the real ones: an unknown keyword raises."""

from __future__ import annotations

import mimetypes
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import torch

COMFYUI_VERSION = "0.14.0"
COMMON = frozenset({"display_name", "optional", "tooltip", "lazy", "extra_dict", "raw_link", "advanced"})
WIDGET = COMMON | {"default", "socketless", "widget_type", "force_input"}


class Socket:
    """An input or an output of a node."""

    options_of_type: frozenset = COMMON

    def __init__(self, io_type: str, id: str | None, options_of_type: frozenset, options: dict[str, Any]):
        unknown = set(options) - options_of_type
        if unknown:
            raise TypeError(f"{io_type}.Input.__init__() got an unexpected keyword argument {min(unknown)!r}")
        self.io_type, self.id, self.options = io_type, id, options

    @property
    def optional(self) -> bool:
        return bool(self.options.get("optional"))

    @property
    def default(self) -> Any:
        default = self.options.get("default")
        return default.value if isinstance(default, Enum) else default


class WidgetInput(Socket):
    """An input whose value may stand in the workflow itself."""


def kind(io_type: str, extra: frozenset = frozenset(), widget: bool = False) -> type:
    """A type with the `Input` and `Output` of comfy_api."""
    options_of_type = (WIDGET if widget else COMMON) | extra

    class Input(WidgetInput if widget else Socket):
        def __init__(self, id: str, **options: Any):
            super().__init__(io_type, id, options_of_type, options)

    class Output(Socket):
        def __init__(self, id: str | None = None, **options: Any):
            super().__init__(io_type, id, frozenset({"display_name", "tooltip", "is_output_list"}), options)

    return type(io_type, (), {"Input": Input, "Output": Output, "io_type": io_type})


class ComboInput(WidgetInput):
    def __init__(self, id: str, options: Any = None, **rest: Any):
        super().__init__("COMBO", id, WIDGET | {"control_after_generate", "upload", "image_folder", "remote"}, rest)
        is_enum = isinstance(options, type) and issubclass(options, Enum)
        self.choices = [item.value for item in options] if is_enum else list(options)

    @property
    def default(self) -> Any:
        return super().default if super().default is not None else (self.choices[0] if self.choices else None)


class MultiTypeInput(Socket):
    def __init__(self, id: str, types: list, **rest: Any):
        super().__init__(",".join(item.io_type for item in types), id, COMMON, rest)


@dataclass
class Schema:
    node_id: str
    display_name: str | None = None
    category: str = "sd"
    inputs: list = field(default_factory=list)
    outputs: list = field(default_factory=list)
    hidden: list = field(default_factory=list)
    description: str = ""
    search_aliases: list = field(default_factory=list)
    is_output_node: bool = False
    is_deprecated: bool = False
    is_experimental: bool = False
    is_api_node: bool = False
    not_idempotent: bool = False

    def __post_init__(self) -> None:
        ids = [socket.id for socket in (*self.inputs, *self.outputs) if socket.id]
        if len(ids) != len(set(ids)):
            raise ValueError(f"Ids must be unique between inputs and outputs: {ids}")


class NodeOutput:
    def __init__(self, *values: Any, ui: Any = None, expand: dict | None = None, block_execution: str | None = None):
        self.args, self.ui, self.block_execution = values, ui, block_execution


EXECUTING = types.SimpleNamespace(prompt_id="prompt", node_id="1", list_index=None)


@contextmanager
def executing(node_id: str) -> Iterator[None]:
    """Has ComfyUI say that node `node_id` is being run."""
    before, EXECUTING.node_id = EXECUTING.node_id, node_id
    try:
        yield
    finally:
        EXECUTING.node_id = before


class ComfyNode:
    hidden = types.SimpleNamespace(unique_id="1", prompt=None, extra_pnginfo=None)

    @classmethod
    def GET_SCHEMA(cls) -> Schema:
        return cls.define_schema()


class ComfyExtension:
    async def on_load(self) -> None:
        """Nothing to do."""


class ExecutionBlocker:
    """Stands in an output's place and keeps the nodes behind it from running."""

    def __init__(self, message: str | None):
        self.message = message


@dataclass
class Preview:
    value: Any
    cls: Any = None


class VideoFromFile:
    def __init__(self, file: str):
        self.path = file


class ProgressBar:
    """Remembers what it was told."""

    updates: list = []  # noqa: RUF012 - shared on purpose: the tests look at it

    def __init__(self, total: int):
        self.total = total

    def update_absolute(self, value: int, total: int | None = None, preview: Any = None) -> None:
        ProgressBar.updates.append((value, total, preview))


class ComfyAPI:
    """The bar of a node that waits."""

    class execution:
        """Its only part that is used."""

        @staticmethod
        async def set_progress(value: float, max_value: float, node_id: str | None = None) -> None:
            """Shows nothing."""


class PromptQueue:
    """The queue, of which the running item is `(number, id, graph, ...)`."""

    def __init__(self) -> None:
        self.graph: dict[str, Any] = {}

    def get_current_queue_volatile(self) -> tuple[list, list]:
        return [(0, "prompt", self.graph)], []


class PromptServer:
    """Remembers the text that nodes were given to show."""

    instance: Any = None

    def __init__(self) -> None:
        self.texts: list[tuple[str, str]] = []
        self.prompt_queue = PromptQueue()

    def send_progress_text(self, text: str, node_id: str) -> None:
        self.texts.append((node_id, text))


def install(models: Path, work: Path) -> None:
    """Puts the stand-ins into `sys.modules`: `models` has ComfyUI's model folders, `work` its output and temp folders."""  # noqa: E501
    number = frozenset({"min", "max", "step", "display_mode", "control_after_generate", "round"})
    plain = {
        "Image": "IMAGE", "Audio": "AUDIO", "Mask": "MASK", "Video": "VIDEO", "Conditioning": "CONDITIONING",
        "Vae": "VAE", "ClipVisionOutput": "CLIP_VISION_OUTPUT",
    }  # fmt: skip
    io = types.SimpleNamespace(
        **{name: kind(io_type) for name, io_type in plain.items()},
        Int=kind("INT", number, widget=True),
        Float=kind("FLOAT", number, widget=True),
        String=kind("STRING", frozenset({"multiline", "placeholder", "dynamic_prompts"}), widget=True),
        Boolean=kind("BOOLEAN", frozenset({"label_on", "label_off"}), widget=True),
        Combo=type("Combo", (), {"Input": ComboInput, "Output": kind("COMBO").Output, "io_type": "COMBO"}),
        MultiType=type("MultiType", (), {"Input": MultiTypeInput}),
        BoundingBoxes=kind("BOUNDING_BOXES", widget=True),
        Custom=kind,
        WidgetInput=WidgetInput,
        UploadType=Enum("UploadType", {"image": "image_upload", "audio": "audio_upload"}),
        Schema=Schema,
        NodeOutput=NodeOutput,
        ComfyNode=ComfyNode,
        Hidden=types.SimpleNamespace(unique_id="UNIQUE_ID", prompt="PROMPT", extra_pnginfo="EXTRA_PNGINFO"),
    )
    ui = types.SimpleNamespace(PreviewImage=Preview, PreviewText=Preview)
    latest = _module(
        "comfy_api.latest", io=io, ui=ui, ComfyExtension=ComfyExtension,
        InputImpl=types.SimpleNamespace(VideoFromFile=VideoFromFile), ComfyAPI=ComfyAPI,
    )  # fmt: skip
    _module("comfy_api", latest=latest)
    graph_utils = _module("comfy_execution.graph_utils", ExecutionBlocker=ExecutionBlocker)
    execution_utils = _module("comfy_execution.utils", get_executing_context=lambda: EXECUTING)
    _module("comfy_execution", graph_utils=graph_utils, utils=execution_utils)
    management = _module(
        "comfy.model_management",
        get_torch_device=lambda: torch.device("cpu"),
        get_free_memory=lambda device: 8 * 10**9,
        get_total_memory=lambda device: 8 * 10**9,
        current_loaded_models=[],
        free_memory=lambda size, device: None,
        minimum_inference_memory=lambda: 10**9,
        extra_reserved_memory=lambda: 4 * 10**8,
        throw_exception_if_processing_interrupted=lambda: None,
        processing_interrupted=lambda: False,
    )
    utils = _module("comfy.utils", ProgressBar=ProgressBar)
    PromptServer.instance = PromptServer()
    _module("server", PromptServer=PromptServer)
    arguments = types.SimpleNamespace(disable_api_nodes=False, disable_pinned_memory=False)
    cli_args = _module("comfy.cli_args", args=arguments)
    _module("comfyui_version", __version__=COMFYUI_VERSION)
    _module("comfy", model_management=management, utils=utils, cli_args=cli_args)
    _module("folder_paths", **_folder_paths(models, work))


def _module(name: str, **attributes: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    vars(module).update(attributes)
    sys.modules[name] = module
    return module


def _folder_paths(models: Path, work: Path) -> dict[str, Any]:
    keys = ("diffusion_models", "model_patches", "text_encoders", "clip_vision", "vae", "audio_encoders", "loras")
    folders = {key: ([str(models / key)], {".safetensors", ".pth", ".bin", ".pt"}) for key in keys}

    def listing(key: str) -> dict[str, Path]:
        paths, extensions = folders[key]
        return {
            file.relative_to(path).as_posix(): file
            for path in paths
            for file in sorted(Path(path).rglob("*"))
            if file.suffix in extensions
        }

    def add(key: str, path: str, is_default: bool = False) -> None:
        folders.setdefault(key, ([], set()))[0].append(path)

    def annotated(name: str, default_dir: str | None = None) -> str:
        folder = default_dir or str(work / "input")
        for annotation in ("input", "output", "temp"):
            if name.endswith(f"[{annotation}]"):
                name, folder = name.removesuffix(f"[{annotation}]").rstrip(), str(work / annotation)
        path = (Path(folder) / name).resolve()
        if not path.is_relative_to(Path(folder).resolve()):
            raise ValueError(f"Invalid file path: {name!r}")
        return str(path)

    def exists(name: str) -> bool:
        try:
            return Path(annotated(name)).exists()
        except ValueError:
            return False

    def of_kinds(files: list[str], content_types: list[str]) -> list[str]:
        return [file for file in files if (mimetypes.guess_type(file)[0] or "").split("/")[0] in content_types]

    return {
        "models_dir": str(models),
        "get_annotated_filepath": annotated,
        "exists_annotated_filepath": exists,
        "filter_files_content_types": of_kinds,
        "folder_names_and_paths": folders,
        "get_filename_list": lambda key: list(listing(key)),
        "get_full_path_or_raise": lambda key, name: str(listing(key)[name]),
        "add_model_folder_path": add,
        "get_output_directory": lambda: str(work / "output"),
        "get_temp_directory": lambda: str(work / "temp"),
        "get_input_directory": lambda: str(work / "input"),
        "get_user_directory": lambda: str(work / "user"),
    }
