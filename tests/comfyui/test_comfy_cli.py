"""ComfyUI's own command line finds nothing wrong with the pack and its workflow files."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support import pack
from support.comfy_server import NEEDS_COMFYUI

pytestmark = NEEDS_COMFYUI
WORKFLOWS = sorted((pack.PACK / "workflows").glob("**/*.json"))


def comfy(*arguments: str) -> dict:
    """The answer of a command of comfy-cli."""
    command = [Path(sys.executable).with_name("comfy"), "--skip-prompt", "--json", *arguments]
    output = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    return json.loads(output)


def validation(server, workflow: Path) -> dict:
    """Verdict of comfy-cli on a workflow file, in the page's form or the queue's, with the server's nodes and files."""
    return comfy("workflow", "validate", "--workflow", str(workflow), "--host", "127.0.0.1", "--port", str(server.port))


def test_the_registry_finds_nothing_wrong_with_the_pack():
    command = [Path(sys.executable).with_name("comfy"), "--skip-prompt", "node", "validate"]
    answer = subprocess.run(command, cwd=pack.PACK, capture_output=True, text=True, timeout=300)
    assert answer.returncode == 0 and "warnings found" not in answer.stdout + answer.stderr, answer.stdout


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.relative_to(pack.PACK).as_posix())
def test_a_workflow_file_is_valid(workflow, server):
    answer = validation(server, workflow)
    assert answer["ok"] and answer["data"]["valid"], answer["data"]["errors"]
    assert answer["data"]["warnings"] == [] and not answer["data"]["spends_credits"]


def test_a_spoilt_workflow_is_not(server, tmp_path):
    prompt = json.loads((pack.PACK / "workflows" / "api" / "small_model.json").read_text())
    sampler = next(entry for entry in prompt.values() if entry["class_type"] == "MultiTalkSampler")
    sampler["inputs"] |= {"model": ["1", 0], "acceleration": "reckless"}
    (tmp_path / "spoilt.json").write_text(json.dumps(prompt))
    answer = validation(server, tmp_path / "spoilt.json")
    assert not answer["ok"] and answer["data"]["error_count"] == 2
