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
        "CHANGELOG.md", "LICENSE", "README.md", "__init__.py", "demo", "docs", "nodes", "pipeline", "pyproject.toml",
        "requirements.txt", "subgraphs", "versions.py", "web", "workflows",
    }  # fmt: skip
    assert [name for name in files if name.startswith("docs/") and not name.endswith(".md")] == []
    assert demo and all(name.startswith(("demo/assets/", "demo/weights/")) for name in demo)


@pytest.fixture(scope="module")
def server(archive, tmp_path_factory):
    """A ComfyUI without models, with nothing but the archive."""
    base = tmp_path_factory.mktemp("comfyui")
    with zipfile.ZipFile(archive) as content:
        content.extractall(base / "custom_nodes" / "multitalk")
    environ = {name: value for name, value in os.environ.items() if not name.upper().endswith("_PROXY")}
    server = ComfyServer(base, environ | {"HF_HUB_OFFLINE": "1"})
    yield server
    server.close()


def test_cores_lists_hold_no_file_of_ours(server):
    info = server.call("/object_info")[1]
    assert "_demo.safetensors" in json.dumps(info["MultiTalkLoadVAE"])
    for kind, inputs in info.items():
        if not kind.startswith("MultiTalk"):
            assert "_demo.safetensors" not in json.dumps(inputs) and "multitalk_" not in json.dumps(inputs["input"]), (
                kind
            )


def test_the_small_model_runs_from_it_and_writes_into_the_output_folder_alone(server):
    prompt = small(json.loads((pack.PACK / "workflows" / "api" / "small_model.json").read_text()), num_frames=5)
    history = server.wait(server.queue(prompt), RUN_S)
    assert history["status"]["status_str"] == "success", history["status"]["messages"]
    assert list((server.base / "output" / "video").glob("*.mp4"))
    assert not [path for path in (server.base / "input").rglob("*") if path.is_file()]
