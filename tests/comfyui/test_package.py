"""The archive that the registry gets: packed by comfy-cli, unpacked by a fresh ComfyUI, run with nothing else."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support import pack
from support.comfy_server import NEEDS_COMFYUI, ComfyServer
from support.workflow_files import small

pytestmark = NEEDS_COMFYUI
RUN_S = 300


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """Archive of the tracked files by `comfy node pack`."""
    folder = tmp_path_factory.mktemp("checkout")

    def git(*arguments: str, of: Path = folder) -> str:
        return subprocess.run(["git", *arguments], cwd=of, check=True, capture_output=True, text=True).stdout

    for name in filter(None, git("ls-files", "-z", of=pack.PACK).split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(pack.PACK / name, folder / name)
    git("init", "--quiet")
    git("add", "--all")
    comfy = Path(sys.executable).with_name("comfy")
    subprocess.run([comfy, "--skip-prompt", "node", "pack"], cwd=folder, check=True, capture_output=True, timeout=120)
    return folder / "node.zip"


def test_it_holds_what_runs_and_nothing_else(archive):
    with zipfile.ZipFile(archive) as content:
        files = content.namelist()
    names, demo = {name.split("/")[0] for name in files}, [name for name in files if name.startswith("demo/")]
    assert names == {
        "LICENSE", "README.md", "__init__.py", "demo", "docs", "nodes", "pipeline", "pyproject.toml",
        "requirements.txt", "subgraphs", "versions.py", "web", "workflows",
    }  # fmt: skip
    assert [name for name in files if name.startswith("docs/") and not name.endswith(".md")] == []
    assert demo and all(name.startswith(("demo/assets/", "demo/weights/")) for name in demo)


def test_the_small_model_runs_from_it(archive, tmp_path):
    with zipfile.ZipFile(archive) as content:
        content.extractall(tmp_path / "custom_nodes" / "multitalk")
    environ = {name: value for name, value in os.environ.items() if not name.upper().endswith("_PROXY")}
    server = ComfyServer(tmp_path, environ | {"HF_HUB_OFFLINE": "1"})
    try:
        prompt = small(json.loads((pack.PACK / "workflows" / "api" / "small_model.json").read_text()), num_frames=5)
        history = server.wait(server.queue(prompt), RUN_S)
    finally:
        server.close()
    assert history["status"]["status_str"] == "success", history["status"]["messages"]
    assert list((tmp_path / "output" / "video").glob("*.mp4"))
