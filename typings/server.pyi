from typing import Any

class PromptQueue:
    def get_current_queue_volatile(self) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]: ...

class PromptServer:
    instance: PromptServer
    prompt_queue: PromptQueue
    def send_progress_text(self, text: str, node_id: str) -> None: ...
