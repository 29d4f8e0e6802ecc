"""MultiTalk Preflight in a real ComfyUI: its text is there before anything is encoded, and on the node."""

import json
import os

import pytest
from support import pack
from support.workflow_files import small

pytestmark = [
    pytest.mark.comfyui,
    pytest.mark.skipif(
        "COMFYUI_DIR" not in os.environ or "COMFYUI_PYTHON" not in os.environ,
        reason="COMFYUI_DIR and COMFYUI_PYTHON name no ComfyUI",
    ),
]


def test_the_report_comes_before_the_encoders_run(server, events):
    prompt = small(json.loads((pack.PACK / "workflows" / "api" / "long_speech.json").read_text()))
    numbers = {entry["class_type"]: number for number, entry in prompt.items()}
    server.call("/free", {"unload_models": True, "free_memory": True})
    history = server.wait(server.queue(prompt), 300)
    assert history["status"]["status_str"] == "success"
    (report,) = history["outputs"][numbers["MultiTalkPreflight"]]["text"]
    assert "forwards: at most" in report and "This cannot run" not in report
    began = [event.data["node"] for event in events.of("executing")]
    for encoder in ("MultiTalkEncodeAudio", "MultiTalkCondition", "MultiTalkSampler"):
        assert began.index(numbers["MultiTalkPreflight"]) < began.index(numbers[encoder])


def test_a_run_that_cannot_be_is_answered_by_the_report_and_by_the_sampler(server):
    prompt = small(json.loads((pack.PACK / "workflows" / "api" / "long_speech.json").read_text()))
    for entry in prompt.values():
        if entry["class_type"] in ("MultiTalkSampler", "MultiTalkPreflight"):
            entry["inputs"] |= {"acceleration": "high", "steps": 4, "seed": 77}
        if entry["class_type"] == "MultiTalkPreflight":
            del entry["inputs"]["seed"]
    told = dict(server.wait(server.queue(prompt), 300)["status"]["messages"])
    assert "High acceleration with 4 steps needs a distilled LoRA" in told["execution_error"]["exception_message"]
    assert told["execution_error"]["node_type"] == "MultiTalkSampler"
