"""Fills the generated parts of the README, of `docs/` and of the nodes' help pages, each between `<!-- begin:NAME -->`
and `<!-- end:NAME -->`. A test asserts that nothing is out of date. A part may move from page to page with its marks.

The rest of every page is written by hand. `docs/nodes.json` holds the Chinese words for the tooltips, each beside the
English that it translates; where a tooltip has changed since, this says so, and `--reviewed` takes the new English.
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
WORDS = {
    "en": {"optional": "optional", "to": " to ", "default": "default", "comma": ", "},
    "zh": {"optional": "可选", "to": " 到 ", "default": "默认", "comma": "，"},
}


def node_classes() -> dict[str, type]:
    """The pack's node classes by their ids."""
    with tempfile.TemporaryDirectory() as folder:
        return pack.node_classes(pack.load(Path(folder), Path(folder)))


def words() -> dict[str, Any]:
    """Tooltips in both languages, by node and input or output."""
    return json.loads(NODES_FILE.read_text(encoding="utf-8"))


def pages(classes: dict[str, type]) -> dict[Path, str]:
    """Every page with its generated parts as they should be today.

    Raises:
        FileNotFoundError: a node has no page yet; write one by hand, with the marks of the generated parts in it.
    """
    translations = words()
    pages_by_path = {}
    for name, node in classes.items():
        for locale in WORDS:
            path = PACK / "web" / "docs" / name / f"{locale}.md"
            sections = _help_sections(node, translations.get(name, {}), locale)
            pages_by_path[path] = fill(path.read_text(encoding="utf-8"), sections)
    sections = _sections(classes)
    for path in (PACK / "README.md", *sorted((PACK / "docs").glob("*.md"))):
        text = path.read_text(encoding="utf-8")
        pages_by_path[path] = fill(text, {name: sections.pop(name) for name in marks(text) if name in sections})
    if sections:
        raise ValueError(f"No page has marks for {sorted(sections)}.")
    return pages_by_path


def marks(text: str) -> list[str]:
    """Names of the generated parts of a page."""
    return re.findall(r"<!-- begin:(\w+) -->", text)


def fill(text: str, sections: dict[str, str]) -> str:
    """`text` with every section between its marks; each section must have its marks, and each mark its section."""
    if set(marks(text)) != set(sections):
        raise ValueError(f"The marks are {sorted(set(marks(text)))}, the sections are {sorted(sections)}.")
    for name, content in sections.items():
        pattern = rf"(<!-- begin:{name} -->\n).*?(<!-- end:{name} -->)"
        text, count = re.subn(pattern, lambda m, content=content: f"{m[1]}{content}\n{m[2]}", text, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"The marks of {name} must stand in the page once, each on a line of its own.")
    return text


def changed_tooltips(classes: dict[str, type], translations: dict[str, Any]) -> list[str]:
    """Inputs whose English has changed since their Chinese was written."""
    stale = []
    for name, node in classes.items():
        inputs = translations.get(name, {}).get("inputs", {})
        tooltips = {socket.id: socket.options["tooltip"] for socket in node.GET_SCHEMA().inputs}
        stale += [f"{name}.{key}" for key, text in tooltips.items() if inputs.get(key, {}).get("en") != text]
    return stale


def _help_sections(node: type, translations: dict[str, Any], locale: str) -> dict[str, str]:
    schema, facts, labels = node.GET_SCHEMA(), pack.describe(node), WORDS[locale]
    tooltips = translations.get("inputs", {})
    inputs = []
    for socket, fact in zip(schema.inputs, facts["inputs"], strict=True):
        text = socket.options["tooltip"] if locale == "en" else tooltips.get(socket.id, {}).get(locale, "")
        inputs.append(_item(socket.id, text, labels["comma"].join(_details(fact, labels))))
    outputs = []
    for _, output in facts["outputs"]:
        outputs.append(_item(output, translations.get("outputs", {}).get(output, {}).get(locale, "")))
    return {"inputs": "\n".join(inputs)} | ({"outputs": "\n".join(outputs)} if outputs else {})


def _item(name: str, text: str, details: str = "") -> str:
    """An item of a list, which fits ComfyUI's narrow panel as no table does."""
    return f"- `{name}`: {text}" + (f"<br>*{details}*" if details else "")


def _details(fact: dict[str, Any], labels: dict[str, Any]) -> Iterator[str]:
    """An input's choices or range, its default, and that it may be left out."""
    if "options" in fact:
        yield from (f"`{choice}`" for choice in fact["options"])
    elif "min" in fact:
        yield f"{fact['min']:g}{labels['to']}{_number(fact['max'])}"
    default = fact.get("default")
    if default not in (None, ""):
        yield f"{labels['default']} `{default}`"
    if fact["optional"]:
        yield labels["optional"]


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def _sections(classes: dict[str, type]) -> dict[str, str]:
    """Generated parts of the README and of `docs/`, by the names in their marks."""
    return {
        "nodes": tables.nodes(classes),
        "workflows": tables.workflows(),
        "files": tables.files(),
        "packagings": tables.packagings(),
        "refusals": tables.refusals(),
        "acceleration": tables.measurements("acceleration"),
        "placements": tables.placements(),
        "cards": tables.cards(),
        "rehearsal": tables.measurements("rehearsal"),
        "weights": tables.measurements("weights"),
        "benchmarks": tables.measurements("dit", "step", "vae", "audio", "ops", "clip"),
        "lip_sync": tables.measurements("lip sync"),
        "prices": tables.prices(),
    }


def _take_english(classes: dict[str, type]) -> None:
    translations = words()
    for name, node in classes.items():
        inputs = translations.setdefault(name, {}).setdefault("inputs", {})
        translations[name]["inputs"] = {
            socket.id: {"en": socket.options["tooltip"], "zh": inputs.get(socket.id, {}).get("zh", "")}
            for socket in node.GET_SCHEMA().inputs
        }
    NODES_FILE.write_text(json.dumps(translations, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main(arguments: list[str]) -> int:
    """Writes all pages; 1 where a tooltip has changed since its translation."""
    classes = node_classes()
    if "--reviewed" in arguments:
        _take_english(classes)
    for path, text in pages(classes).items():
        path.write_text(text, encoding="utf-8")
    stale = changed_tooltips(classes, words())
    if stale:
        sys.stderr.write(f"Translate these anew in docs/nodes.json, then run with --reviewed: {', '.join(stale)}\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
