"""Fills the generated parts of the README and of the nodes' help pages: what stands between `<!-- begin:NAME -->` and
`<!-- end:NAME -->`. A test asserts that nothing is out of date.

The rest of every page is written by hand. `docs/nodes.json` holds the Chinese words for the tooltips, each beside the
English that it was made from; where a tooltip has changed since, this says so, and `--reviewed` takes the new English.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PACK = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(PACK / "tools"), str(PACK / "tests")]
if "multitalk_pack" not in sys.modules:
    import conftest  # noqa: F401 - puts the engine under the name that the tests use

import docs_tables as tables  # noqa: E402 - needs the paths above
from support import pack  # noqa: E402

NODES_FILE = PACK / "docs" / "nodes.json"
WORDS = {  # ComfyUI shows a page in a narrow column, where a third column of a table is out of sight
    "en": {"head": ("Input", "What it is"), "out": ("Output", "What it is"), "optional": "optional", "to": " to ",
           "default": "default", "comma": ", "},
    "zh": {"head": ("输入", "说明"), "out": ("输出", "说明"), "optional": "可选", "to": " 到 ", "default": "默认",
           "comma": "，"},
}  # fmt: skip


def node_classes() -> dict[str, type]:
    """The pack's node classes by their ids."""
    with tempfile.TemporaryDirectory() as folder:
        return pack.node_classes(pack.load(Path(folder), Path(folder)))


def words() -> dict[str, Any]:
    """Tooltips in both languages, by node and input or output."""
    return json.loads(NODES_FILE.read_text(encoding="utf-8"))


def pages(classes: dict[str, type]) -> dict[Path, str]:
    """Every page with its generated parts made anew.

    Raises:
        FileNotFoundError: a node has no page yet; write one by hand, with the marks of the generated parts in it.
    """
    spoken = words()
    made = {}
    for name, node in classes.items():
        for locale in WORDS:
            path = PACK / "web" / "docs" / name / f"{locale}.md"
            made[path] = fill(path.read_text(encoding="utf-8"), _help_sections(node, spoken.get(name, {}), locale))
    readme = PACK / "README.md"
    made[readme] = fill(readme.read_text(encoding="utf-8"), _readme_sections(classes))
    return made


def fill(text: str, sections: dict[str, str]) -> str:
    """`text` with every section between its marks; each section must have its marks, and each mark its section."""
    marks = set(re.findall(r"<!-- begin:(\w+) -->", text))
    if marks != set(sections):
        raise ValueError(f"The marks are {sorted(marks)}, the sections are {sorted(sections)}.")
    for name, content in sections.items():
        pattern = rf"(<!-- begin:{name} -->\n).*?(<!-- end:{name} -->)"
        text, count = re.subn(pattern, lambda m, content=content: f"{m[1]}{content}\n{m[2]}", text, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"The marks of {name} must stand in the page once, each on a line of its own.")
    return text


def changed_tooltips(classes: dict[str, type], spoken: dict[str, Any]) -> list[str]:
    """Inputs whose English is not that which their Chinese was made from."""
    changed = []
    for name, node in classes.items():
        known = spoken.get(name, {}).get("inputs", {})
        changed += [
            f"{name}.{socket.id}"
            for socket in node.GET_SCHEMA().inputs
            if known.get(socket.id, {}).get("en") != socket.options["tooltip"]
        ]
    return changed


def _help_sections(node: type, spoken: dict[str, Any], locale: str) -> dict[str, str]:
    schema, facts, said = node.GET_SCHEMA(), pack.describe(node), WORDS[locale]
    inputs = []
    for socket, fact in zip(schema.inputs, facts["inputs"], strict=True):
        text = socket.options["tooltip"] if locale == "en" else spoken.get("inputs", {}).get(socket.id, {}).get(locale)
        details = said["comma"].join(_details(fact, said))
        inputs.append((f"`{socket.id}`", f"{text or ''}<br>*{details}*" if details else text or ""))
    outputs = []
    for _, output in facts["outputs"]:
        outputs.append((f"`{output}`", spoken.get("outputs", {}).get(output, {}).get(locale, "")))
    sections = {"inputs": tables.table(said["head"], inputs)}
    return sections | ({"outputs": tables.table(said["out"], outputs)} if outputs else {})


def _details(fact: dict[str, Any], said: dict[str, Any]) -> Iterator[str]:
    """An input's choices or range, its default, and that it may be left out."""
    if "options" in fact:
        yield from (f"`{choice}`" for choice in fact["options"])
    elif "min" in fact:
        yield f"{fact['min']:g}{said['to']}{_number(fact['max'])}"
    default = fact.get("default")
    if default not in (None, ""):
        yield f"{said['default']} `{default}`"
    if fact["optional"]:
        yield said["optional"]


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def _readme_sections(classes: dict[str, type]) -> dict[str, str]:
    return {
        "nodes": tables.nodes(classes),
        "workflows": tables.workflows(),
        "files": tables.files(),
        "packagings": tables.packagings(),
        "refusals": tables.refusals(),
        "acceleration": tables.measured(lambda title: title.startswith("acceleration")),
        "placements": tables.placements(),
        "weights": tables.measured(lambda title: title.startswith("weights")),
        "benchmarks": tables.measured(lambda title: not title.startswith(("acceleration", "weights", "lip sync"))),
        "lip_sync": tables.measured(lambda title: title.startswith("lip sync")),
        "prices": tables.prices(),
    }


def _take_english(classes: dict[str, type]) -> None:
    spoken = words()
    for name, node in classes.items():
        known = spoken.setdefault(name, {}).setdefault("inputs", {})
        spoken[name]["inputs"] = {
            socket.id: {"en": socket.options["tooltip"], "zh": known.get(socket.id, {}).get("zh", "")}
            for socket in node.GET_SCHEMA().inputs
        }
    NODES_FILE.write_text(json.dumps(spoken, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main(arguments: list[str]) -> int:
    """Writes all pages; 1 where a tooltip has changed since its translation."""
    classes = node_classes()
    if "--reviewed" in arguments:
        _take_english(classes)
    for path, text in pages(classes).items():
        path.write_text(text, encoding="utf-8")
    changed = changed_tooltips(classes, words())
    if changed:
        sys.stderr.write(f"Translate these anew in docs/nodes.json, then run with --reviewed: {', '.join(changed)}\n")
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
