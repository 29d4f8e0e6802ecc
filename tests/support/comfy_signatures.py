"""Run by the Python of a ComfyUI, in its folder: the signatures and attributes behind the names on standard input.

In: a JSON list of `module:name`, the name with dots for nested classes. Out: a JSON object; null where there is no such
name, else `parameters` (name, kind, has a default; null where it is not called) and `attributes` (those of the object
and, of a class, those that its `__init__` sets).
"""

import importlib.util
import inspect
import json
import sys
from typing import Any

LEFT_OUT = object()


def resolve(module: str, name: str) -> Any:
    """The object behind a name, or `LEFT_OUT`; `comfy_api.latest.io` is no module but an attribute of its package."""
    parts = name.split(".")
    if importlib.util.find_spec(module) is None:
        module, _, attribute = module.rpartition(".")
        parts.insert(0, attribute)
    value = importlib.import_module(module)
    for part in parts:
        value = getattr(value, part, LEFT_OUT)
    return value


def signature(value: Any) -> dict[str, Any] | None:
    if value is LEFT_OUT:
        return None
    parameters, attributes = None, set(dir(value))
    if inspect.isroutine(value):
        parameters = [
            (name, parameter.kind.name, parameter.default is not parameter.empty)
            for name, parameter in inspect.signature(value).parameters.items()
        ]
    for cls in inspect.getmro(value) if inspect.isclass(value) else ():
        attributes |= set(getattr(cls, "__annotations__", ()))
        if inspect.isfunction(cls.__init__):
            attributes |= set(cls.__init__.__code__.co_names)
    return {"parameters": parameters, "attributes": sorted(attributes)}


if __name__ == "__main__":
    import comfy.options

    comfy.options.enable_args_parsing()  # so that --cpu is read
    print(json.dumps({name: signature(resolve(*name.split(":"))) for name in json.load(sys.stdin)}))
