from execution import PromptQueue

class PromptServer:
    instance: PromptServer
    prompt_queue: PromptQueue
    def send_progress_text(self, text: str, node_id: str) -> None: ...
