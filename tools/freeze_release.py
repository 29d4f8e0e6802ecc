"""Writes `tests/released/<version>/`: workflows that every later version must load. Run it at each release."""

import json
import shutil
from pathlib import Path

import make_workflows
from workflow_graph import PACK, VERSION


def main() -> None:
    """Writes the page's and the queue's form of every workflow, under one name, and the blueprints."""
    folder = PACK / "tests" / "released" / VERSION
    shutil.rmtree(folder, ignore_errors=True)
    for name, graph in make_workflows.build().items():
        _write(folder / "page" / f"{name}.json", graph.page())
        _write(folder / "api" / f"{name}.json", graph.api())
    shutil.copytree(PACK / "subgraphs", folder / "subgraphs")


def _write(file: Path, content: dict) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
