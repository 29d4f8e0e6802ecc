from torch import Tensor

from .io import ComfyNode

class PreviewImage:
    def __init__(self, image: Tensor, animated: bool = False, cls: type[ComfyNode] | None = None) -> None: ...

class PreviewText:
    def __init__(self, value: str) -> None: ...
