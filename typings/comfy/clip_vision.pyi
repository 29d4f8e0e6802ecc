from torch import Tensor

class Output:
    def __getitem__(self, key: str) -> Tensor: ...
