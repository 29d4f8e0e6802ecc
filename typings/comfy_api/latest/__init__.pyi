from typing import BinaryIO

from . import io as io
from . import ui as ui

class ComfyAPI:
    class Execution:
        async def set_progress(self, value: float, max_value: float, node_id: str | None = None) -> None: ...

    execution: Execution

class ComfyExtension:
    async def on_load(self) -> None: ...
    async def get_node_list(self) -> list[type[io.ComfyNode]]: ...

class InputImpl:
    class VideoFromFile:
        def __init__(self, file: str | BinaryIO) -> None: ...
