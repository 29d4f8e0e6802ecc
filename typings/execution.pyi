from typing import Any

class PromptQueue:
    def get_current_queue_volatile(self) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]: ...
