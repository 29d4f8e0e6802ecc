from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from .ui import PreviewImage, PreviewText

class Input:
    id: str
    display_name: str | None
    optional: bool
    tooltip: str | None
    def __init__(
        self,
        id: str,
        display_name: str | None = None,
        optional: bool = False,
        tooltip: str | None = None,
        lazy: bool | None = None,
        *,
        extra_dict: dict[str, Any] | None = None,
        advanced: bool | None = None,
    ) -> None: ...
    def get_io_type(self) -> str: ...

class WidgetInput(Input):
    default: Any

class Output:
    id: str | None
    display_name: str | None
    def __init__(self, id: str | None = None, display_name: str | None = None, tooltip: str | None = None) -> None: ...

class ComfyTypeIO:
    io_type: str
    class Input(Input): ...
    class Output(Output): ...

def Custom(io_type: str) -> type[ComfyTypeIO]: ...

class Boolean(ComfyTypeIO):
    class Input(WidgetInput):
        def __init__(
            self,
            id: str,
            display_name: str | None = None,
            optional: bool = False,
            tooltip: str | None = None,
            lazy: bool | None = None,
            default: bool | None = None,
            *,
            advanced: bool | None = None,
        ) -> None: ...

class BoundingBoxes(ComfyTypeIO):
    class Input(WidgetInput):
        def __init__(
            self,
            id: str,
            display_name: str | None = None,
            optional: bool = False,
            tooltip: str | None = None,
            socketless: bool = True,
            default: list[dict[str, Any]] | None = None,
            advanced: bool | None = None,
        ) -> None: ...

class Int(ComfyTypeIO):
    class Input(WidgetInput):
        def __init__(
            self,
            id: str,
            display_name: str | None = None,
            optional: bool = False,
            tooltip: str | None = None,
            lazy: bool | None = None,
            default: int | None = None,
            min: int | None = None,
            max: int | None = None,
            step: int | None = None,
            control_after_generate: bool | None = None,
            *,
            advanced: bool | None = None,
        ) -> None: ...

class Float(ComfyTypeIO):
    class Input(WidgetInput):
        def __init__(
            self,
            id: str,
            display_name: str | None = None,
            optional: bool = False,
            tooltip: str | None = None,
            lazy: bool | None = None,
            default: float | None = None,
            min: float | None = None,
            max: float | None = None,
            step: float | None = None,
            round: float | None = None,
            *,
            advanced: bool | None = None,
        ) -> None: ...

class String(ComfyTypeIO):
    class Input(WidgetInput):
        def __init__(
            self,
            id: str,
            display_name: str | None = None,
            optional: bool = False,
            tooltip: str | None = None,
            lazy: bool | None = None,
            multiline: bool = False,
            placeholder: str | None = None,
            default: str | None = None,
            *,
            advanced: bool | None = None,
        ) -> None: ...

class UploadType(str, Enum):
    image = "image_upload"
    audio = "audio_upload"

class Combo(ComfyTypeIO):
    class Input(WidgetInput):
        options: list[str]
        def __init__(
            self,
            id: str,
            options: list[str] | type[Enum],
            display_name: str | None = None,
            optional: bool = False,
            tooltip: str | None = None,
            lazy: bool | None = None,
            default: str | Enum | None = None,
            *,
            upload: UploadType | None = None,
            advanced: bool | None = None,
        ) -> None: ...

class MultiType:
    class Input(Input):
        def __init__(
            self,
            id: str | Input,
            types: list[type[ComfyTypeIO]],
            display_name: str | None = None,
            optional: bool = False,
            tooltip: str | None = None,
            lazy: bool | None = None,
            *,
            advanced: bool | None = None,
        ) -> None: ...

class Audio(ComfyTypeIO): ...
class ClipVisionOutput(ComfyTypeIO): ...
class Conditioning(ComfyTypeIO): ...
class Image(ComfyTypeIO): ...
class Mask(ComfyTypeIO): ...
class Vae(ComfyTypeIO): ...
class Video(ComfyTypeIO): ...

class Hidden(str, Enum):
    unique_id = "UNIQUE_ID"
    prompt = "PROMPT"

class HiddenHolder:
    unique_id: str
    prompt: dict[str, Any] | None

@dataclass
class Schema:
    node_id: str
    display_name: str | None = None
    category: str = "sd"
    inputs: list[Input] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)
    hidden: list[Hidden] = field(default_factory=list)
    description: str = ""
    search_aliases: list[str] = field(default_factory=list)
    is_output_node: bool = False
    not_idempotent: bool = False

class NodeOutput:
    args: tuple[Any, ...]
    def __init__(self, *args: Any, ui: PreviewImage | PreviewText | dict[str, Any] | None = None) -> None: ...

class ComfyNode:
    hidden: HiddenHolder
    @classmethod
    def define_schema(cls) -> Schema: ...
    @classmethod
    def execute(cls, **kwargs: Any) -> Any: ...
    @classmethod
    def validate_inputs(cls, **kwargs: Any) -> bool | str: ...
    @classmethod
    def fingerprint_inputs(cls, **kwargs: Any) -> Any: ...
