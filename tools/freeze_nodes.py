"""Writes `tests/frozen_nodes.json`: what people's workflows depend on. Run it when a change of a node is decided."""

import json
import sys
import tempfile
from pathlib import Path

PACK = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PACK / "tests"))

from support import pack  # noqa: E402 - the tests' helpers lie there


def main() -> None:
    """Loads the pack with the stand-ins and writes the file."""
    with tempfile.TemporaryDirectory() as folder:
        nodes = pack.node_classes(pack.load(Path(folder), Path(folder)))
    frozen = {name: pack.describe(node) for name, node in nodes.items()}
    (PACK / "tests" / "frozen_nodes.json").write_text(json.dumps(frozen, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
