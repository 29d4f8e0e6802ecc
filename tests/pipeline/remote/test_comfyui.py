"""The node in a real ComfyUI: shown, interrupted, failed beside, killed; each job bought once and cancelled once."""

import json
import os
import time
from pathlib import Path

import pytest
from PIL import Image
from support.comfy_server import NEEDS_COMFYUI, ComfyServer
from support.fake_fal import COMPLETED, KEY, FakeFal
from support.media import hum, write_sound
from support.remote import until

pytestmark = NEEDS_COMFYUI

PACK = Path(__file__).resolve().parents[3]
RUNNING = {"status": "IN_PROGRESS", "logs": [{"message": "step 4/10", "timestamp": "1"}]}
STATUS = "^GET queue .*/status"
# A pack of our one node and two that behave badly beside it: one raises, one eats the interruption.
TRIAL = f"""
import asyncio, importlib.util, sys, types
from comfy.utils import ProgressBar
from comfy_api.latest import ComfyExtension, io
for name, folder in (("multitalk_pack", {str(PACK)!r}), ("multitalk_pack.nodes", {str(PACK / "nodes")!r})):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [folder]
from multitalk_pack.nodes.remote import MultiTalkFal, MultiTalkFalCollect

def schema(name):
    return io.Schema(node_id=name, category="trial", inputs=[io.Float.Input("after_s", default=1.0)],
                     outputs=[io.Int.Output(display_name="nothing")], is_output_node=True, not_idempotent=True)

class Raises(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema("TrialRaises")
    @classmethod
    async def execute(cls, after_s):
        await asyncio.sleep(after_s)
        raise RuntimeError("the neighbour failed")

class Eats(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema("TrialEats")
    @classmethod
    async def execute(cls, after_s):
        for i in range(200):
            try:
                ProgressBar(200).update_absolute(i)
            except BaseException:
                return io.NodeOutput(0)
            await asyncio.sleep(0.005)
        return io.NodeOutput(1)

class Trial(ComfyExtension):
    async def get_node_list(self):
        return [MultiTalkFal, MultiTalkFalCollect, Raises, Eats]

async def comfy_entrypoint():
    return Trial()
"""


class Place:
    """A fake fal, a base directory for ComfyUI, and the server that runs there at the moment."""

    def __init__(self, fal: FakeFal, base: Path, certificate: Path):
        self.fal, self.base, self.server = fal, base, None
        self.environ = {
            name: value
            for name, value in os.environ.items()
            if not name.upper().endswith("_PROXY") and not name.startswith(("FAL_", "SSL_CERT_", "MULTITALK_"))
        }
        self.environ |= {
            "HTTPS_PROXY": f"http://127.0.0.1:{fal.port}",
            "SSL_CERT_FILE": str(certificate),
            "FAL_KEY": KEY,
        }
        (base / "custom_nodes" / "trial").mkdir(parents=True)
        (base / "custom_nodes" / "trial" / "__init__.py").write_text(TRIAL)
        (base / "input").mkdir()
        Image.new("RGB", (32, 32), (90, 80, 70)).save(base / "input" / "face.png")
        write_sound(base / "input" / "voice.wav", hum(7, 8000, 1), "pcm_s16le", "mono")

    def start(self, *options: str) -> ComfyServer:
        if self.server:
            self.server.close()
        self.server = ComfyServer(self.base, self.environ, *options)
        return self.server

    def fresh(self) -> None:
        """Forgets the jobs of the test before."""
        self.fal.log.clear()
        self.fal.jobs.clear()
        self.fal.faults.clear()
        self.fal.released.clear()
        self.fal.script, self.fal.on_cancel = [COMPLETED], "removed"
        if self.server is None or self.server.process.poll() is not None:
            self.start()


@pytest.fixture(scope="module")
def place_of_module(authority, video_bytes, tmp_path_factory):
    certificate, context = authority
    fal = FakeFal(context, video_bytes)
    place = Place(fal, tmp_path_factory.mktemp("comfy"), certificate)
    yield place
    if place.server:
        place.server.close()
    fal.close()


@pytest.fixture
def place(place_of_module) -> Place:
    place_of_module.fresh()
    return place_of_module


def graph(*seeds: int, other_kind: str | None = None, **changes) -> dict:
    """One node of ours for each seed, each saved, and perhaps a neighbour."""
    prompt = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "face.png"}},
        "2": {"class_type": "LoadAudio", "inputs": {"audio": "voice.wav"}},
    }
    for index, seed in enumerate(seeds):
        inputs = {
            "image": ["1", 0],
            "audio": ["2", 0],
            "prompt": "a woman talks",
            "num_frames": 41,
            "resolution": "480p",
            "seed": seed,
            "acceleration": "regular",
            "resume": "auto",
            "long_audio": "cut",
            "endpoint": "fal-ai/ai-avatar",
            **changes,
        }
        save = {"video": [f"1{index}", 0], "filename_prefix": f"saved_{seed}", "format": "auto", "codec": "auto"}
        prompt[f"1{index}"] = {"class_type": "MultiTalkFal", "inputs": inputs}
        prompt[f"2{index}"] = {"class_type": "SaveVideo", "inputs": save}
    if other_kind:
        prompt["30"] = {"class_type": other_kind, "inputs": {"after_s": 1.0}}
    return prompt


def status(history: dict) -> str:
    return [name for name, _ in history["status"]["messages"]][-1]


def refusal(place: Place, prompt: dict) -> str:
    """The message of a run that ends with one."""
    messages = dict(place.server.wait(place.server.queue(prompt))["status"]["messages"])
    return messages["execution_error"]["exception_message"]


def running(place: Place, num_jobs: int = 1) -> None:
    """Waits until so many jobs have been looked at."""
    until(lambda: len({call.path for call in place.fal.calls(STATUS)}) == num_jobs, 30)


def test_the_schema_asks_for_no_key_and_keeps_the_seed(place):
    node = place.server.call("/object_info/MultiTalkFal")[1]["MultiTalkFal"]
    inputs = {**node["input"]["required"], **node["input"].get("optional", {})}
    assert not [name for name in inputs if any(word in name.lower() for word in ("key", "token", "secret", "password"))]
    assert node["input"].get("hidden", {}).keys() <= {"unique_id"} and not node["api_node"] and not node["output_node"]
    assert inputs["seed"][1]["control_after_generate"] is False
    assert [inputs["num_frames"][1][name] for name in ("min", "max", "step")] == [41, 721, 4]
    assert node["output_name"] == ["video", "seed", "request_id", "info"]


def test_a_graph_runs_and_the_second_queue_buys_nothing(place):
    place.fal.script = [{"status": "IN_QUEUE", "queue_position": 1}, RUNNING, COMPLETED]
    history = place.server.wait(place.server.queue(graph(1), {"nodes": []}))
    assert status(history) == "execution_success" and history["outputs"]["20"]
    assert len(place.fal.submits) == 1
    place.server.wait(place.server.queue(graph(1)))
    place.server.call("/free", {"free_memory": True})  # empties ComfyUI's cache
    time.sleep(1)
    num_calls = len(place.fal.log)
    assert status(place.server.wait(place.server.queue(graph(1)))) == "execution_success"
    assert len(place.fal.log) == num_calls
    assert list((place.base / "output" / "multitalk").glob("fal_*.mp4"))


def test_two_event_loops_after_each_other_work(place):
    for seed in (2, 3):
        assert status(place.server.wait(place.server.queue(graph(seed)))) == "execution_success"
    assert len(place.fal.submits) == 2


@pytest.mark.parametrize("state", ["queued", "running"])
def test_an_interrupt_frees_the_interface_and_sends_one_cancel(place, state):
    place.fal.script = [RUNNING if state == "running" else {"status": "IN_QUEUE", "queue_position": 3}]
    prompt_id = place.server.queue(graph({"queued": 4, "running": 5}[state]))
    running(place)
    place.fal.fault("^PUT queue", "slow", seconds=60)
    place.server.interrupt()
    assert status(place.server.wait(prompt_id)) == "execution_interrupted"
    until(lambda: place.fal.withheld == 1)  # nobody has waited for the answer to the cancel
    place.fal.released.set()
    time.sleep(0.5)
    assert len(place.fal.cancels) == 1 and len(place.fal.submits) == 1


def test_two_nodes_run_side_by_side_and_an_interrupt_cancels_both(place):
    place.fal.script = [RUNNING]
    prompt_id = place.server.queue(graph(6, 7))
    running(place, 2)
    place.server.interrupt()
    assert status(place.server.wait(prompt_id)) == "execution_interrupted"
    until(lambda: len(place.fal.cancels) == 2)
    time.sleep(0.5)
    assert len({call.path for call in place.fal.cancels}) == 2 == len(place.fal.cancels)


def test_a_neighbours_failure_cancels_the_job(place):
    place.fal.script = [RUNNING]
    history = place.server.wait(place.server.queue(graph(8, other_kind="TrialRaises")))
    assert status(history) == "execution_error"
    until(lambda: not place.fal.submits or place.fal.cancels)
    time.sleep(0.5)
    assert len(place.fal.cancels) == len(place.fal.submits) == 1


def test_a_neighbours_failure_in_the_middle_of_the_post_cancels_the_job(place):
    place.fal.fault("^POST queue", "slow", seconds=1.5)
    history = place.server.wait(place.server.queue(graph(9, other_kind="TrialRaises")))
    assert status(history) == "execution_error"
    until(lambda: place.fal.cancels)
    time.sleep(0.5)
    assert len(place.fal.cancels) == len(place.fal.submits) == 1


def test_a_neighbour_that_eats_the_interruption_does_not_keep_the_job(place):
    place.fal.script = [RUNNING]
    prompt_id = place.server.queue(graph(10, other_kind="TrialEats"))
    running(place)
    place.server.interrupt()
    place.server.interrupt()
    time.sleep(1.5)
    if not place.fal.cancels:  # the neighbour was first both times, and has ended
        place.server.interrupt()
    place.server.wait(prompt_id)
    until(lambda: place.fal.cancels)
    time.sleep(0.5)
    assert len(place.fal.cancels) == 1


def test_a_late_cancel_and_a_job_that_finished_anyhow(place):
    place.fal.script, place.fal.on_cancel = [RUNNING], "ignored"
    place.fal.fault("^PUT queue", "slow", seconds=1)
    prompt_id = place.server.queue(graph(11))
    running(place)
    place.server.interrupt()
    assert status(place.server.wait(prompt_id)) == "execution_interrupted"
    place.fal.script = [COMPLETED]
    assert status(place.server.wait(place.server.queue(graph(11)))) == "execution_success"
    assert len(place.fal.cancels) == 1 and len(place.fal.submits) == 1


def test_a_video_is_collected_by_its_id(place):
    place.server.wait(place.server.queue(graph(17)))
    (request_id,) = place.fal.jobs
    prompt = graph(18)
    prompt["10"] = {
        "class_type": "MultiTalkFalCollect",
        "inputs": {"request_id": request_id, "endpoint": "fal-ai/ai-avatar"},
    }
    assert status(place.server.wait(place.server.queue(prompt))) == "execution_success"
    assert len(place.fal.submits) == 1


def test_bad_inputs_are_told_before_anything_is_sent(place):
    for changes, message in (({"prompt": " "}, "prompt is empty"), ({"num_frames": 301}, "241")):
        assert message in refusal(place, graph(12, **changes))
    assert place.fal.log == []


def test_the_key_is_nowhere_in_comfyui(place):
    workflow = {"nodes": [], "extra": {"note": "as the page sends it"}}
    history = place.server.wait(place.server.queue(graph(13), workflow))
    assert status(history) == "execution_success"
    pages = ["/history", "/queue", "/object_info/MultiTalkFal", "/internal/logs", "/internal/logs/raw", "/settings"]
    output = json.dumps([place.server.call(page)[1] for page in pages]) + "".join(place.server.log)
    saved = [path.read_bytes() for path in place.base.rglob("*") if path.is_file()]
    (mp4,) = (place.base / "output").glob("saved_13*.mp4")
    assert b"as the page sends it" in mp4.read_bytes()  # so it would carry a key as well
    for secret in (KEY, *KEY.split(":")):
        assert secret not in output and not [content for content in saved if secret.encode() in content]
    private = place.base / "user" / "__multitalk" / "fal_ledger.sqlite3"
    assert private.stat().st_mode & 0o777 == 0o600
    assert place.server.call("/userdata/..%2F__multitalk%2Ffal_ledger.sqlite3")[0] in (400, 403, 404)
    assert "queue.fal.run" not in "".join(place.server.log)  # no line for each look


def test_control_c_leaves_the_job_to_the_next_start(place):
    place.fal.script = [RUNNING]
    place.server.queue(graph(14))
    running(place)
    place.server.control_c()
    assert not place.fal.cancels
    place.fal.script = [COMPLETED]
    server = place.start()
    assert status(server.wait(server.queue(graph(14)))) == "execution_success"
    assert len(place.fal.submits) == 1 and not place.fal.cancels


def test_control_c_right_after_an_interrupt_still_cancels(place):
    place.fal.script = [RUNNING]
    place.fal.fault("^PUT queue", "slow", seconds=0.5)
    prompt_id = place.server.queue(graph(15))
    running(place)
    place.server.interrupt()
    place.server.wait(prompt_id)
    place.server.control_c()
    assert len(place.fal.cancels) == 1


def test_without_api_nodes_nothing_is_bought(place):
    place.start("--disable-api-nodes")
    assert "--disable-api-nodes" in refusal(place, graph(16))
    assert place.fal.log == []
