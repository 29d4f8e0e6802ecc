"""Tables of figures: printed as they are made, and kept as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

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
        """The table as text."""
        columns = list(dict.fromkeys(column for row in self.rows for column in row))
        cells = ([shown(row.get(column)) for column in columns] for row in self.rows)
        lines = [columns, ["---"] * len(columns), *cells]
        return "\n".join((f"### {self.title}", "", *(f"| {' | '.join(line)} |" for line in lines), ""))


def comparison_rows(
    case: str, figures: Mapping[str, Figures], goals: Mapping[str, float] | None = None
) -> Iterator[Row]:
    """A row for each other way beside `ours`: seconds of both, speed-up, relative error, peak memory of both.

    Args:
        case: what was run.
        figures: of all ways; one is called "ours".
        goals: the speed-up that is wanted over another way.
    """
    ours = figures["ours"]
    for name, other in figures.items():
        if name == "ours":
            continue
        same = other.result.shape == ours.result.shape
        yield {
            "case": case,
            "against": name,
            "seconds": other.median_s,
            "ours, s": ours.median_s,
            "speed-up": speed_up(other, ours),
            "goal": (goals or {}).get(name),
            "relative error": relative_error(ours.result, other.result) if same else None,
            "peak MB": other.memory_mb,
            "ours, peak MB": ours.memory_mb,
        }


def shown(value: Value) -> str:
    """A figure with three digits that count; a dash where there is none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if not isinstance(value, float):
        return str(value)
    if value == 0 or math.isinf(value):
        return f"{value:g}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def save(path: Path, tables: Iterable[Table]) -> None:
    """Adds the tables, each with the facts of this machine, to a JSON file; those of the same title are replaced."""
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    kept |= {table.title: {"machine": facts(), "rows": table.rows} for table in tables}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(kept, indent=1, ensure_ascii=False, default=str) + "\n", encoding="utf-8")


def markdown_of(path: Path) -> str:
    """The tables of a JSON file as text, each with the machine that it was measured on."""
    kept = json.loads(path.read_text(encoding="utf-8"))
    tables = (
        f"{Table(title, part['rows']).markdown()}\n{machine_line(part['machine'])}\n" for title, part in kept.items()
    )
    return "\n".join(tables)


def machine_line(told: Mapping) -> str:
    """The machine of `facts`, as text."""
    where = told.get("gpu") or f"{told['cpu']}, {told['cores']} cores, {told['threads']} thread(s)"
    return f"{where}; torch {told['torch']}; load {told['load_1_min']}; {told['time']}"
