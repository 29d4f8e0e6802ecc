"""MultiTalk Preflight in a real ComfyUI: its text is there before anything is encoded, and on the node."""

import json

from support import pack
from support.comfy_server import NEEDS_COMFYUI
from support.workflow_files import inputs_of, small

pytestmark = NEEDS_COMFYUI


def test_the_report_comes_before_the_encoders_run(server, events):
    prompt = small(json.loads((pack.PACK / "workflows" / "api" / "long_speech.json").read_text()))
    numbers = {entry["class_type"]: number for number, entry in prompt.items()}
    server.call("/free", {"unload_models": True, "free_memory": True})
    history = server.wait(server.queue(prompt), 300)
    assert history["status"]["status_str"] == "success"
    (report,) = history["outputs"][numbers["MultiTalkPreflight"]]["text"]
    assert "forwards: at most" in report and "This cannot run" not in report
    order = [event.data["node"] for event in events.of("executing")]
    for encoder in ("MultiTalkEncodeAudio", "MultiTalkCondition", "MultiTalkSampler"):
        assert order.index(numbers["MultiTalkPreflight"]) < order.index(numbers[encoder])


def test_a_run_that_cannot_be_is_answered_by_the_report_and_by_the_sampler(server):
    prompt = small(json.loads((pack.PACK / "workflows" / "api" / "long_speech.json").read_text()))
    inputs_of(prompt, "MultiTalkSampler").update(acceleration="high", steps=4, seed=77)
    history = server.wait(server.queue(prompt), 300)
    error, refusal = dict(history["status"]["messages"])["execution_error"], "High acceleration with 4 steps needs a"
    number = next(number for number, entry in prompt.items() if entry["class_type"] == "MultiTalkPreflight")
    assert refusal in history["outputs"][number]["text"][0]
    assert refusal in error["exception_message"] and error["node_type"] == "MultiTalkSampler"
