"""The stubs in typings/ beside the ComfyUI that they stand for: names, parameters, their order and their defaults."""

from __future__ import annotations

import ast
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import comfy_signatures, pack
from support.comfy_server import NEEDS_COMFYUI

pytestmark = NEEDS_COMFYUI
TYPINGS = pack.PACK / "typings"
OPTIONAL = {"ray", "sageattention"}  # packages of their own, no part of ComfyUI


@dataclass(frozen=True)
class Declaration:
    """A class, a function or a variable of a stub; `attributes` are a class's."""

    module: str
    name: str
    arguments: ast.arguments | None = None
    attributes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.module}:{self.name}"


def declarations(module: str, body: list[ast.stmt], prefix: str = "") -> Iterator[Declaration]:
    """All public declarations of a stub; the private class of a variable gives the attributes of that variable."""
    private = {node.name: node for node in body if isinstance(node, ast.ClassDef) and node.name.startswith("_")}
    for node in body:
        if isinstance(node, ast.ClassDef) and node.name not in private:
            yield Declaration(module, prefix + node.name, attributes=_attributes(node))
            yield from declarations(module, node.body, f"{prefix}{node.name}.")
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            if "classmethod" in map(ast.unparse, node.decorator_list):
                del node.args.args[0]  # the class, which a signature leaves out
            yield Declaration(module, prefix + node.name, node.args)
        elif isinstance(node, ast.AnnAssign) and not prefix:
            shape = private.get(ast.unparse(node.annotation))
            yield Declaration(module, ast.unparse(node.target), attributes=_attributes(shape) if shape else ())


def _attributes(node: ast.ClassDef) -> tuple[str, ...]:
    targets = [[one.target] if isinstance(one, ast.AnnAssign) else getattr(one, "targets", []) for one in node.body]
    return tuple(ast.unparse(target) for some in targets for target in some)


def stubs() -> list[Declaration]:
    """The declarations of all stubs of ComfyUI."""
    collected: list[Declaration] = []
    for path in sorted(TYPINGS.rglob("*.pyi")):
        module = path.relative_to(TYPINGS).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")
        if module not in OPTIONAL:
            collected += declarations(module, ast.parse(path.read_text(encoding="utf-8")).body)
    return collected


@pytest.fixture(scope="module")
def signatures() -> dict[str, dict | None]:
    """Signatures that this ComfyUI has behind each declared name."""
    process = subprocess.run(
        [os.environ["COMFYUI_PYTHON"], Path(comfy_signatures.__file__), "--cpu"],
        cwd=os.environ["COMFYUI_DIR"],
        env={**os.environ, "PYTHONPATH": os.environ["COMFYUI_DIR"]},
        input=json.dumps([str(declaration) for declaration in stubs()]),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


@pytest.mark.parametrize("declaration", stubs(), ids=str)
def test_a_declaration_of_the_stubs_holds_in_comfyui(declaration, signatures):
    real = signatures[str(declaration)]
    assert real is not None, f"{declaration} is not there"
    assert set(declaration.attributes) <= set(real["attributes"])
    if declaration.arguments is not None:
        check_arguments(declaration.arguments, real["parameters"])


def check_arguments(stub: ast.arguments, parameters: list[tuple[str, str, bool]]) -> None:
    """Holds that every call which the stub allows is one that the real function takes.

    Positional arguments have the same names in the same places, keywords are there, and what must be given in truth
    must be given in the stub.
    """
    positional, keywords = [one.arg for one in stub.args], [one.arg for one in stub.kwonlyargs]
    required = set(positional[: len(positional) - len(stub.defaults)])
    required |= {name for name, default in zip(keywords, stub.kw_defaults, strict=True) if default is None}
    kinds = {name: kind for name, kind, _ in parameters}
    in_place = [name for name, kind in kinds.items() if kind.startswith("POSITIONAL")]
    assert in_place[: len(positional)] == positional
    assert set(keywords) <= set(kinds) or "VAR_KEYWORD" in kinds.values()
    assert required >= {name for name, kind, has_default in parameters if not has_default and "VAR" not in kind}
