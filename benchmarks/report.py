"""Tables of figures, printed row by row and stored as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .machine import facts
from .measure import Figures, relative_error, speed_up

Value = str | int | float | None
Row = Mapping[str, Value]


@dataclass
class Table:
    """Rows of the same columns under a title."""

    title: str
    rows: list[Row] = field(default_factory=list)

    def markdown(self) -> str:
        """Table in Markdown."""
        columns = list(dict.fromkeys(column for row in self.rows for column in row))
        cells = ([format_value(row.get(column)) for column in columns] for row in self.rows)
        lines = [columns, ["---"] * len(columns), *cells]
        return "\n".join((f"### {self.title}", "", *(f"| {' | '.join(line)} |" for line in lines), ""))


def comparison_rows(
    case: str, figures: Mapping[str, Figures], goals: Mapping[str, float] | None = None
) -> Iterator[Row]:
    """Rows of all other variants beside `ours`: seconds of both, speed-up, relative error, peak memory of both.

    Args:
        case: name of the work.
        figures: of all variants; one is called "ours".
        goals: for the speed-up over other variants.
    """
    ours = figures["ours"]
    for name, variant in figures.items():
        if name == "ours":
            continue
        same = variant.result.shape == ours.result.shape
        yield {
            "case": case,
            "against": name,
            "seconds": variant.median_s,
            "ours, s": ours.median_s,
            "speed-up": speed_up(variant, ours),
            "goal": (goals or {}).get(name),
            "relative error": relative_error(ours.result, variant.result) if same else None,
            "peak MB": variant.memory_mb,
            "ours, peak MB": ours.memory_mb,
        }


def format_value(value: Value) -> str:
    """Figure with three significant digits; a dash for None and for what is not a number."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if not isinstance(value, float):
        return str(value)
    if value == 0 or math.isinf(value):
        return f"{value:g}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def save(path: Path, tables: Iterable[Table]) -> None:
    """Adds the tables, each with the facts of this machine, to a JSON file, in place of those of the same title."""
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    stored |= {table.title: {"machine": facts(), "rows": table.rows} for table in tables}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(stored, indent=1, ensure_ascii=False, default=str) + "\n", encoding="utf-8")


def save_page(path: Path, tables: Iterable[Table], json_file: Path | None) -> None:
    """Writes the tables as a page in Markdown, which says how to send them."""
    files = path.name if json_file is None else f"{path.name} and {json_file.name}"
    lines = [
        f"# MultiTalk on {facts().get('gpu', facts()['cpu'])}",
        "",
        machine_line(facts()),
        "",
        *(table.markdown() for table in tables),
        "`docs/performance.md` has the estimates for cards; `seconds / ceilings` says how near a forward comes to",
        "what this card's own products and attention allow. Nobody had measured them on a card when they were written:",
        f"please open an issue in the repository of this pack and attach {files}. They name the card, the processor,",
        "the system's version and the libraries, and nothing else of this machine.",
        "",
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines), encoding="utf-8")


def machine_line(machine: Mapping[str, Any]) -> str:
    """Sentence about the machine that `machine.facts` describes."""
    device = machine.get("gpu") or f"{machine['cpu']}, {machine['threads']} of {machine['cores']} cores"
    load = f"load {machine['load_1_min']:.1f} at its end"
    return f"Measured on {device}, torch {machine['torch']}, {load}, {machine['time'][:10]}."
