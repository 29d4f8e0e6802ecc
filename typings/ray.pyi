from typing import Any

def __getattr__(name: str) -> Any: ...  # optional: its own types are read where it is installed
