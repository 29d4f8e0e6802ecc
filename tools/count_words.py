"""Counts the words that our code does without: private ones, participles as names, riddles at the head of docstrings.

    python tools/count_words.py           # a table, by folder
    python tools/count_words.py --where   # each place as well

Exit code 1 above a limit. A name counts once a file. Names of tests are sentences and are left out.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

PACK = Path(__file__).resolve().parents[1]
FOLDERS = ("pipeline", "nodes", "demo", "benchmarks", "tools", "tests", "docs")

# Words for which the field has others, as whole names and as parts of names.
PRIVATE_WORDS = """
    around ask asked asks beside casting desk doors draft findings hear heard hearing hears home house inspect
    inspection look looked looking looks onlooker overdone pins rooms see seeing seen sees stories story surroundings
    tale tell tells think thinks thought through told turn turned turns watch watched watches worn
"""
PRIVATE_PHRASES = ("looks_at", "of_text", "of_image", "of_voices")
# Saved in people's workflows, diffusers' own, and a speaker's turn in a dialogue.
FIELD_NAMES = ("first_look", "_skip_layerwise_casting_patterns", "IN_TURN", "in_turn", "Turn", "turns", "plan_turns")

# Participles that say what somebody did to a thing, and not what it is. The field's own (padded, shifted, cached,
# merged, packed, guided, projected, expected, measured ...) are none of them.
PARTICIPLES = """
    added allowed arrived asked begun believed bought brought caught changed chosen counted covered done drawn dropped
    ended felt found given gone grown handed heard held joined kept killed known listed looked made meant moved named
    needed opened placed reached refused said seen sent settled shown spent spoken started stated stopped taken thought
    told turned used waited wanted written
"""
RIDDLES = ("What", "Whether", "How", "Where")

PRIVATE_LIMIT, PARTICIPLE_LIMIT, RIDDLE_PERCENT = 10, 40, 2  # each must stay below


@dataclass(frozen=True)
class Place:
    """A name or a docstring that counts: its file and line, and the text."""

    path: str
    line: int
    text: str

    @property
    def folder(self) -> str:
        """The folder at the top of the pack."""
        return self.path.split("/")[0]

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text}"


@dataclass
class Counts:
    """All places of the three kinds, and the number of docstrings by folder."""

    private: list[Place]
    participles: list[Place]
    riddles: list[Place]
    docstrings: Counter[str]

    @property
    def riddle_percent(self) -> float:
        """The share of docstrings that open with a riddle, in percent."""
        return 100 * len(self.riddles) / max(1, self.docstrings.total())

    @property
    def is_within_limits(self) -> bool:
        """All three counts are below their limits."""
        within = len(self.private) < PRIVATE_LIMIT and len(self.participles) < PARTICIPLE_LIMIT
        return within and self.riddle_percent < RIDDLE_PERCENT


def parts(name: str) -> list[str]:
    """The words of an identifier in lower case: `numHeard`, `NUM_HEARD` and `num_heard` are `num`, `heard`."""
    return [part.lower() for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]


def is_private(name: str) -> bool:
    """A word of ours is the name or a part of it."""
    words = parts(name)
    has_phrase = any(re.search(rf"(^|_){phrase}(_|$)", "_".join(words)) for phrase in PRIVATE_PHRASES)
    return name not in FIELD_NAMES and (has_phrase or not set(words).isdisjoint(PRIVATE_WORDS.split()))


def is_participle(name: str) -> bool:
    """The noun of the name is a participle: `known` and `frames_known`, but not `known_frames` or `is_known`."""
    words = parts(name)
    return words[:1] != ["is"] and words != [] and words[-1] in PARTICIPLES.split()


def defined_names(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Names of the functions, classes, arguments, locals and attributes that a file defines, with their lines."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            if not node.name.startswith("test_"):
                yield node.name, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno
        elif isinstance(node, ast.alias) and node.asname:
            yield node.asname, node.lineno


def docstrings(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """The docstrings of a file with their lines."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text:
                yield text, node.body[0].lineno


def count(folders: Iterable[str] = FOLDERS) -> Counts:
    """The counts over all files of `folders`, and over code in the pages of `docs`."""
    counts = Counts([], [], [], Counter())
    for folder in folders:
        for path in sorted((PACK / folder).rglob("*.py")):
            _count_file(path, counts)
        for path in sorted((PACK / folder).rglob("*.md")) if folder == "docs" else ():
            _count_page(path, counts)
    return counts


def _count_file(path: Path, counts: Counts) -> None:
    name, tree = path.relative_to(PACK).as_posix(), ast.parse(path.read_text(encoding="utf-8"))
    names = {text: Place(name, line, text) for text, line in reversed(list(defined_names(tree)))}
    counts.private += [place for text, place in names.items() if is_private(text)]
    counts.participles += [place for text, place in names.items() if is_participle(text)]
    for text, line in docstrings(tree):
        place = Place(name, line, text.split("\n")[0])
        counts.docstrings[place.folder] += 1
        if text.split()[0].rstrip(",.:") in RIDDLES:
            counts.riddles.append(place)


def _count_page(path: Path, counts: Counts) -> None:
    for line, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        for name in re.findall(r"`([A-Za-z_][\w.]*)(?:\(.*\))?`", text):
            if is_private(name):
                counts.private.append(Place(path.relative_to(PACK).as_posix(), line, name))


def table(counts: Counts) -> str:
    """The counts by folder, their sums and the limits."""
    kinds = [counts.private, counts.participles, counts.riddles]
    by_folder = [Counter(place.folder for place in places) for places in kinds]
    lines = [f"{'':12}{'private words':>15}{'participles':>15}{'riddles':>15}{'of docstrings':>15}"]
    for folder in FOLDERS:
        row = [count[folder] for count in by_folder] + [counts.docstrings[folder]]
        lines.append(f"{folder:12}" + "".join(f"{cell:>15}" for cell in row))
    sums = [*map(len, kinds), counts.docstrings.total()]
    lines.append(f"{'together':12}" + "".join(f"{cell:>15}" for cell in sums))
    limits = [f"< {PRIVATE_LIMIT}", f"< {PARTICIPLE_LIMIT}", f"< {RIDDLE_PERCENT} %", f"{counts.riddle_percent:.1f} %"]
    return "\n".join([*lines, f"{'limits':12}" + "".join(f"{cell:>15}" for cell in limits)])


def main() -> None:
    """Prints the table, and the places where they are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--where", action="store_true", help="print each place as well")
    parser.add_argument("folders", nargs="*", default=FOLDERS, help="count in these only, e.g. pipeline/audio")
    options = parser.parse_args()
    counts = count(options.folders)
    if options.where:
        for title in ("private", "participles", "riddles"):
            sys.stdout.writelines(f"{title}: {place}\n" for place in getattr(counts, title))
    sys.stdout.write(table(counts) + "\n")
    sys.exit(not counts.is_within_limits)


if __name__ == "__main__":
    main()
