"""Workflows of any content through the nodes: refused by ComfyUI's own rules, told in a sentence, or run; and nothing
outside ComfyUI's folders is read or written."""

import copy
import json
import random
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support import pack
from support.fuzz import MONITOR, fuzzed
from support.workflow_files import inputs_of, small, write_inputs, write_models
from support.workflow_runner import Rejected, Runner, check

API = pack.PACK / "workflows" / "api"
WORKFLOWS = {path.stem: json.loads(path.read_text()) for path in sorted(API.glob("*.json")) if path.stem != "remote"}
TEXTS = st.sampled_from(
    ["", "../../etc/passwd", "/etc/passwd", "..\\..\\secret", "C:\\secret", "\0", "a" * 5000, "nan", "|" * 50, "%s{0}"]
) | st.text(max_size=20)
VALUES = st.one_of(
    st.integers(-(2**65), 2**65), st.integers(-2, 5), st.floats(), TEXTS, st.none(), st.booleans(),
    st.just([]), st.just({}), st.lists(st.sampled_from(["1", "2", "99", 0, 1, -1, 7]), min_size=2, max_size=2),
)  # fmt: skip
SECRET = "secret.safetensors"


class World:
    """The nodes with ComfyUI's folders in one place, and a file beside them that is nobody's business."""

    def __init__(self, base):
        self.base, self.models, self.work = base, base / "comfyui" / "models", base / "comfyui" / "work"
        self.inputs = self.work / "input"
        for folder in (self.models, self.work, self.inputs):
            folder.mkdir(parents=True)
        self.nodes = pack.node_classes(pack.load(self.models, self.work))
        write_models(self.models)
        write_inputs(self.inputs, duration_s=0.3)
        (base / SECRET).write_bytes((self.models / "vae" / "wan_2.1_vae.safetensors").read_bytes())
        self.ours = __import__("sys").modules[f"{pack.NAME}.pipeline.errors"].MultiTalkError
        self.runner = Runner(self.nodes, self.inputs)

    def try_out(self, prompt):
        """Runs a workflow; what it opened and changed has to lie in ComfyUI's folders."""
        if len(self.runner.cache) > 200:
            self.runner.cache.clear()
        with MONITOR.on() as monitor:
            try:
                check(prompt, self.nodes)
                self.runner.run(prompt)
            except Rejected:
                pass
            except ValueError as error:
                assert isinstance(error, self.ours), repr(error)
                assert str(error).strip().endswith((".", ")")), error
        assert not monitor.ran
        assert self.base / SECRET not in monitor.paths_read
        assert [path for path in monitor.paths_read if "passwd" in path.name] == []
        outside = {path for path in monitor.paths_out if not is_inside(path, self.work)}
        assert not outside, outside
        assert {path.name for path in self.base.iterdir()} == {"comfyui", SECRET}
        assert {path.name for path in (self.base / "comfyui").iterdir()} == {"models", "work"}


def is_inside(path, work):
    """ComfyUI's output, temp and user folders, and what Python itself keeps."""
    inside = any((work / name) in (path, *path.parents) for name in ("output", "temp", "user"))
    return inside or path == work or "__pycache__" in path.parts or Path("/dev") in path.parents


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("world"))


def tiny(name):
    """A shipped workflow that is done in a second."""
    prompt = small(copy.deepcopy(WORKFLOWS[name]), num_frames=1)
    inputs_of(prompt, "MultiTalkSampler").update(steps=1, text_scale=1.0, audio_scale=1.0)
    return prompt


def too_much(prompt):
    """It would run, and for longer than a test may."""
    for entry in prompt.values():
        inputs, kind = entry["inputs"], entry["class_type"]
        wide = [inputs.get(name, 0) for name in ("width", "height")]
        if kind == "MultiTalkCondition" and (
            inputs.get("resolution") != "custom" or any(type(side) is int and side > 128 for side in wide)
        ):
            return True
        if kind == "MultiTalkEncodeAudio" and (
            inputs.get("num_frames") not in range(1, 100) or str(inputs.get("start_times")).isdecimal()
        ):
            return inputs.get("num_frames") in range(100001)
        if kind == "MultiTalkSampler" and isinstance(inputs.get("steps"), int) and inputs["steps"] not in range(1, 5):
            return inputs["steps"] in range(201)
    return False


@pytest.mark.parametrize("name", WORKFLOWS)
def test_what_is_changed_below_runs_unchanged(name, world):
    """Else everything would be refused, and nothing tried."""
    prompt = tiny(name)
    check(prompt, world.nodes)
    world.runner.run(prompt)


@fuzzed
@given(name=st.sampled_from(sorted(WORKFLOWS)), draw=st.data())
def test_any_value_in_any_widget(name, draw, world):
    prompt = tiny(name)
    for _ in range(draw.draw(st.integers(1, 3))):
        inputs = prompt[draw.draw(st.sampled_from(sorted(prompt)))]["inputs"]
        widgets = sorted(name for name, value in inputs.items() if not isinstance(value, list))
        if widgets:
            inputs[draw.draw(st.sampled_from(widgets))] = draw.draw(VALUES)
    if not too_much(prompt):
        world.try_out(prompt)


@fuzzed
@given(name=st.sampled_from(sorted(WORKFLOWS)), draw=st.data())
def test_links_and_nodes_that_are_missing_or_lead_elsewhere(name, draw, world):
    prompt = tiny(name)
    change = draw.draw(st.sampled_from(["no input", "other source", "no node", "other kind", "new input"]))
    number = draw.draw(st.sampled_from(sorted(prompt)))
    inputs = prompt[number]["inputs"]
    if change == "no node":
        del prompt[number]
    elif change == "other kind":
        prompt[number]["class_type"] = draw.draw(st.sampled_from([*world.nodes, "NoSuchNode"]))
    elif change == "new input":
        inputs[draw.draw(TEXTS)] = draw.draw(VALUES)
    elif inputs:
        key = draw.draw(st.sampled_from(sorted(inputs)))
        if change == "no input":
            del inputs[key]
        else:
            inputs[key] = [draw.draw(st.sampled_from(sorted(prompt))), draw.draw(st.integers(-1, 3))]
    world.try_out(prompt)


@pytest.mark.parametrize("start", ["14401", "1e300", "nan", "inf", str(2**65), "-1"])
def test_a_voice_does_not_start_when_no_memory_could_hold_it(start, world):
    prompt = tiny("single_speaker_fast")
    inputs_of(prompt, "MultiTalkEncodeAudio")["start_times"] = start
    with pytest.raises(world.ours, match="start"):
        world.runner.run(prompt)


LEADING_OUT = [
    f"../../{SECRET}", f"../../../{SECRET}", "{base}/" + SECRET, f"vae/../../../{SECRET}", f"..\\..\\{SECRET}",
    "/etc/passwd", "../../../../../../../../etc/passwd", f"transformers/../../../{SECRET}", f"diffusers/../../{SECRET}",
]  # fmt: skip
LOADERS = {
    "MultiTalkLoadModel": ("base", "adapter"), "MultiTalkLoadLora": ("lora",), "MultiTalkLoadVAE": ("file",),
    "MultiTalkLoadTextEncoder": ("file",), "MultiTalkLoadImageEncoder": ("file",),
    "MultiTalkLoadAudioEncoder": ("file",),
}  # fmt: skip


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("name", LEADING_OUT)
def test_a_path_in_a_loader_is_not_followed_even_where_the_list_is_not_checked(kind, name, world):
    prompt = tiny("single_speaker_fast")
    name = name.format(base=world.base)
    load = inputs_of(prompt, "MultiTalkLoadModel")
    model = world.nodes["MultiTalkLoadModel"].execute(**load).args[0]
    for field in LOADERS[kind]:
        inputs = dict(inputs_of(prompt, kind)) | {field: name}
        inputs = {key: model if isinstance(value, list) else value for key, value in inputs.items()}
        with MONITOR.on() as monitor, pytest.raises(ValueError, match="Put the file there"):
            world.nodes[kind].execute(**inputs)
        assert world.base / SECRET not in monitor.paths_read and Path("/etc/passwd") not in monitor.paths_read


@st.composite
def option_chains(draw):
    """Both options nodes with any values that their widgets allow."""
    return (
        dict(
            plan=draw(st.sampled_from(["exact", "published"])), window_frames=draw(st.integers(0, 60)),
            motion_frames=draw(st.integers(0, 30)), color_strength=draw(st.floats(0, 1)),
            first_look=False, resume=draw(st.booleans()),
        ),
        draw(st.integers(0, 2**32)),
    )  # fmt: skip


def any_value(socket, chance):
    """A value that the widget allows."""
    if socket.io_type == "COMBO":
        return chance.choice(socket.choices)
    if socket.io_type == "BOOLEAN":
        return chance.random() < 0.5
    low, high = socket.options["min"], min(socket.options["max"], 12)
    return chance.randint(low, max(low, int(high))) if socket.io_type == "INT" else chance.uniform(low, high)


def any_values(node, chance):
    """A value for each widget of an options node."""
    return {socket.id: any_value(socket, chance) for socket in node.GET_SCHEMA().inputs if socket.id != "options"}


@fuzzed
@given(
    chain=option_chains(), steps=st.integers(1, 8), frames=st.integers(1, 40), scale=st.sampled_from([0.0, 1.0, 4.0])
)
@example(chain=(dict(plan="published", window_frames=5, motion_frames=5, color_strength=1.0, first_look=False,
                     resume=True), 1), steps=1, frames=30, scale=1.0)  # fmt: skip
def test_any_combination_of_options(chain, steps, frames, scale, world):
    windows, seed = chain
    chance, prompt = random.Random(seed), tiny("long_speech")
    options = prompt[inputs_of(prompt, "MultiTalkSampler")["options"][0]]
    options["inputs"] |= any_values(world.nodes["MultiTalkLongVideoOptions"], chance) | windows
    values = any_values(world.nodes["MultiTalkAccelerationOptions"], chance)
    prompt["98"] = {
        "class_type": "MultiTalkAccelerationOptions",
        "inputs": values | {"compile": "off", "options": inputs_of(prompt, "MultiTalkSampler")["options"]},
    }
    inputs_of(prompt, "MultiTalkEncodeAudio")["num_frames"] = frames
    inputs_of(prompt, "MultiTalkSampler").update(
        options=["98", 0], steps=steps, text_scale=scale, audio_scale=2.0, keep_frames=True,
        acceleration=chance.choice(["none", "regular", "high"]),
    )  # fmt: skip
    world.try_out(prompt)
