"""The architecture page says what the house is: its files are there, all of them, and imports run down its floors."""

import ast
import re

import pytest
from multitalk_pack.versions import OLDEST_COMFYUI, OLDEST_TORCH
from support.pack import PACK

PAGE = (PACK / "docs" / "architecture.md").read_text(encoding="utf-8")
FLOORS = [re.findall(r"`([^`]+)`", row) for row in re.findall(r"(?m)^\| \w+ \| (`.*) \|$", PAGE)]
LEVELS = {place: level for level, places in enumerate(FLOORS) for place in places}


def level_of(path):
    """The floor of a file, counted from the top; None for a package's own `__init__`."""
    name = path.relative_to(PACK).as_posix()
    levels = [
        level for place, level in LEVELS.items() if name == place or (place[-1] == "/" and name.startswith(place))
    ]
    assert levels or path.name == "__init__.py", f"{name} stands on no floor"
    return levels[0] if levels else None


def imported(path):
    """The files of the pack that a file imports when it is loaded, or later; not for type checkers alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    hints = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level and id(node) not in hints:
            folder = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            inside = [folder / f"{alias.name}.py" for alias in node.names]
            yield from (file for file in [folder.with_suffix(".py"), *inside] if file.exists())


FILES = [path for folder in ("pipeline", "nodes") for path in sorted((PACK / folder).rglob("*.py"))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACK).as_posix())
def test_imports_run_down(path):
    levels = {file.name: level_of(file) for file in imported(path) if level_of(path) is not None}
    up = [name for name, level in levels.items() if level is not None and level < level_of(path)]
    assert not up, f"{path.name} imports from above: {up}"


def test_every_place_on_the_page_is_there():
    places = [place for floor in FLOORS for place in floor]
    paths = re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.(?:py|md))`", PAGE)
    assert len(FLOORS) == 11 and [place for place in places if not (PACK / place).exists()] == []
    assert [name for name in paths if not any((PACK / root / name).exists() for root in ("", "pipeline"))] == []


def test_the_engine_has_never_heard_of_comfyui():
    for path in (PACK / "pipeline").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
        names += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level]
        ours = [
            name for name in names if name.split(".")[0] in ("comfy", "comfy_api", "folder_paths", "server", "nodes")
        ]
        assert ours == [], path.name


def test_torch_distributed_is_imported_by_the_processes_of_several_devices_alone():
    ranks = {"launcher.py", "rank_group.py", "worker.py"}
    sources = (path for path in FILES if "import torch.distributed" in (text := path.read_text("utf-8"))
               or "from torch.distributed" in text)  # fmt: skip
    assert {path.relative_to(PACK).as_posix() for path in sources} == {f"pipeline/parallel/{name}" for name in ranks}
    entry = {file.name for file in imported(PACK / "pipeline" / "parallel" / "ranks.py")}
    assert not ranks & entry, "the program that renders joins no group"


@pytest.fixture
def project():
    """pyproject.toml."""
    tomllib = pytest.importorskip("tomllib")  # from Python 3.11 on
    return tomllib.loads((PACK / "pyproject.toml").read_text(encoding="utf-8"))


def required(name):
    """The lines of a requirements file."""
    lines = (PACK / name).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_the_registry_is_told_the_same_requirements_as_pip(project):
    assert project["project"]["dependencies"] == required("requirements.txt")


def test_torch_is_left_to_comfyui_and_installed_without_one(project):
    assert not [line for line in required("requirements.txt") if line.startswith("torch")]
    assert required("requirements-standalone.txt") == ["-r requirements.txt", f"torch>={OLDEST_TORCH}"]
    assert project["project"]["optional-dependencies"]["standalone"] == [f"torch>={OLDEST_TORCH}"]


def test_ray_is_the_same_wherever_it_is_asked_for(project):
    assert project["project"]["optional-dependencies"]["batch"] == required("requirements-batch.txt")


def test_the_registry_is_told_the_oldest_comfyui(project):
    assert project["tool"]["comfy"]["requires-comfyui"] == f">={OLDEST_COMFYUI}"


def test_the_installed_package_has_every_folder_of_the_engine(project):
    engine = PACK / "pipeline"
    folders = [path.parent.relative_to(engine).parts for path in engine.rglob("__init__.py")]
    assert sorted(project["tool"]["setuptools"]["packages"]) == sorted(
        ".".join(("multitalk", *parts)) for parts in folders
    )


def test_few_files_stand_at_the_top_of_the_engine():
    assert len([path for path in (PACK / "pipeline").glob("*.py") if not path.name.startswith("__")]) <= 9
