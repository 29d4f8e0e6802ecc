"""Refusals in sight: on the face of the node, as ComfyUI shows the text of an exception two clicks deep."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from comfy_api.latest import io

from ..pipeline.errors import MultiTalkError
from .comfy_host import show_text


def show_refusals(node: type[io.ComfyNode]) -> None:
    """Has `node` show the sentence of our own errors on its face when its `execute` raises one."""
    execute = vars(node)["execute"].__func__

    @functools.wraps(execute)
    def run(cls: type, *args: Any, **inputs: Any) -> Any:
        with _refusal_on_face():
            return execute(cls, *args, **inputs)

    @functools.wraps(execute)
    async def run_async(cls: type, *args: Any, **inputs: Any) -> Any:
        with _refusal_on_face():
            return await execute(cls, *args, **inputs)

    node.execute = classmethod(run_async if inspect.iscoroutinefunction(execute) else run)  # pyright: ignore[reportAttributeAccessIssue]


@contextmanager
def _refusal_on_face() -> Iterator[None]:
    try:
        yield
    except MultiTalkError as error:
        type(error).__module__ = "MultiTalk"  # the details begin with it; else with the path of this folder
        show_text(str(error))
        raise
