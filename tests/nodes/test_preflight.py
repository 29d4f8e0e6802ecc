"""MultiTalk Preflight: everything at once, as text, from headers alone."""

import dataclasses
import importlib
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support import pack
from support.workflow_files import PLACES, write_models

RATE_HZ = 16000
TEXT_DIM, IMAGE_DIM = 64, 160  # of the small files
WIDGETS = {
    "MultiTalkSampler": {
        "steps": 2, "text_scale": 5.0, "audio_scale": 4.0, "shift": 0.0, "seed": 42, "acceleration": "none",
        "keep_frames": True,
    },
    "MultiTalkEncodeAudio": {
        "num_frames": 0, "fps": 25.0, "multi_audio_type": "para", "normalize_loudness": True, "start_times": "",
    },
    "MultiTalkCondition": {
        "prompt": "", "negative_prompt": "", "resolution": "custom", "width": 64, "height": 64, "dub_video": False,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return tmp_path_factory.mktemp("models"), tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def nodes(folders):
    nodes = pack.node_classes(pack.load(*folders))
    write_models(folders[0])
    return nodes


@pytest.fixture(scope="module")
def loaded(nodes):
    """Outputs of the loaders, by the preflight's sockets."""
    names = {part: f"{files[0]}.safetensors" for part, (_, files) in PLACES.items()}
    give = lambda kind, **inputs: nodes[kind].execute(**inputs).args[0]  # noqa: E731
    return {
        "model": give("MultiTalkLoadModel", base=names["transformer"], adapter=names["adapter"], recipe="auto",
                      precision="auto", memory="auto", resident_blocks=-1),
        "vae": give("MultiTalkLoadVAE", file=names["vae"]),
        "text_encoder": give("MultiTalkLoadTextEncoder", file=names["text_encoder"]),
        "image_encoder": give("MultiTalkLoadImageEncoder", file=names["image_encoder"]),
        "audio_encoder": give("MultiTalkLoadAudioEncoder", file=names["audio_encoder"], allow_other=False),
    }  # fmt: skip


@pytest.fixture(autouse=True)
def no_weights_are_read(nodes, monkeypatch):
    """Whatever would read weights fails."""
    source = sys.modules[f"{pack.NAME}.pipeline.weights.source"]
    for kind in source.Source.__subclasses__():
        monkeypatch.setattr(kind, "get", lambda *_: pytest.fail("a tensor was read"))


def image():
    return torch.from_numpy(np.random.default_rng(0).random((1, 90, 120, 3)).astype("float32"))


def voice(duration_s=2.0, level=0.5):
    time_s = torch.arange(round(duration_s * RATE_HZ)) / RATE_HZ
    return {"waveform": level * torch.sin(time_s * 1500)[None, None], "sample_rate": RATE_HZ}


def graph_of(**changes):
    """The graph around the preflight, which is node 1, with some widgets of its other nodes changed."""
    graph = {"1": {"class_type": "MultiTalkPreflight", "inputs": {"model": ["9", 0]}}}
    links = {"model": ["9", 0], "audio_embeds": ["MultiTalkEncodeAudio", 0], "conditioning": ["MultiTalkCondition", 0]}
    for kind, widgets in WIDGETS.items():
        overrides = {name: changes[name] for name in widgets.keys() & changes.keys()}
        linked = links if kind == "MultiTalkSampler" else {}
        graph[kind] = {"class_type": kind, "inputs": widgets | overrides | linked}
    return graph


def run_in(graph, nodes):
    """Has ComfyUI run `graph`, as far as the preflight notices."""
    nodes["MultiTalkPreflight"].hidden = SimpleNamespace(prompt=graph)
    sys.modules["server"].PromptServer.instance.prompt_queue.graph = graph


def preflight(nodes, loaded, **changes):
    """Report and verdict for a run that works, with some inputs and widgets of the graph changed."""
    widgets = {name for kind in WIDGETS.values() for name in kind}
    run_in(graph_of(**changes), nodes)
    inputs = loaded | {"image": image(), "audio_1": voice()} | changes
    inputs = {name: value for name, value in inputs.items() if value is not None and name not in widgets}
    return nodes["MultiTalkPreflight"].execute(**inputs)


def long_video(nodes, **changes):
    """Output of the long video options, with some of their widgets changed."""
    node = nodes["MultiTalkLongVideoOptions"]
    usual = {widget.id: widget.options["default"] for widget in node.GET_SCHEMA().inputs if widget.id != "options"}
    return node.execute(**usual | changes).args[0]


def test_a_run_that_works_is_estimated_on_the_node_and_as_text(nodes, loaded):
    output = preflight(nodes, loaded)
    report, can_run = output.args
    assert can_run and output.ui.value == report
    assert sys.modules["server"].PromptServer.instance.texts[-1] == ("1", report)
    for text in ("Nothing was found", "1 of 53 frames for 50 frames (2.0 s) of 64x64", "at most 6, 224 tokens each",
                 "not measured on this machine", "blocks stay on the device", "RAM: about", "disk: up to"):  # fmt: skip
        assert text in report, report


def test_all_problems_are_told_at_once_and_none_is_raised(nodes, loaded):
    output = preflight(
        nodes,
        loaded,
        acceleration="high",
        width=65,
        audio_1={"waveform": torch.full((1, 1, 99), float("nan")), "sample_rate": RATE_HZ},
        start_times="soon",
        options=long_video(nodes),
    )
    report, can_run = output.args
    assert not can_run
    for text in (
        "This cannot run:\n- ", "image: width must be a multiple of 16, got 65", "audio: start_times must be seconds",
        "audio: audio_1 holds NaN", "acceleration: High acceleration with 2 steps",
    ):  # fmt: skip
        assert text in report, report


MISTAKES = {
    "two voices, one place": (
        {"audio_2": voice(), "speakers": "left"},
        "2 voices need as many places in the picture, got 1",
    ),
    "window shorter than its motion": ({"options": ("exact", 0, 101)}, "cannot start with 101 motion frames"),
    "empty masks": (
        {"audio_2": voice(), "ref_target_masks": torch.zeros(2, 90, 120)},
        "The mask of speaker 1 is empty. Paint the whole person in white",
    ),
    "a word that is no choice": (
        {"acceleration": "fast"},
        "'fast' is no acceleration. Take one of: none, regular, high",
    ),
    "no sound": ({"audio_1": {"waveform": torch.zeros(1, 1, 0), "sample_rate": RATE_HZ}}, "audio_1 has no sound"),
    "an empty batch": ({"image": torch.zeros(0, 90, 120, 3)}, "image must be a batch of pictures"),
    "NaN in the picture": ({"image": torch.full((1, 90, 120, 3), float("nan"))}, "The image holds NaN"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_reported(name, nodes, loaded):
    changes, sentence = MISTAKES[name]
    if "speakers" in changes:
        left = nodes["MultiTalkSpeaker"].execute(left=0.0, top=0.0, right=50.0, bottom=100.0).args[0]
        changes = changes | {"speakers": left}
    if "options" in changes:
        plan, frames, motion = changes["options"]
        options = long_video(nodes, plan=plan, window_frames=frames, motion_frames=motion)
        changes = {"options": options, "num_frames": 300}
    report, can_run = preflight(nodes, loaded, **changes).args
    assert not can_run and sentence in report, report


def test_after_a_refusal_another_look_is_taken_and_after_a_clean_one_none(nodes, loaded):
    def fingerprint():
        run_in(graph_of(), nodes)
        return nodes["MultiTalkPreflight"].fingerprint_inputs()

    before = fingerprint()
    preflight(nodes, loaded)
    assert fingerprint() == before
    assert not preflight(nodes, loaded, width=65).args[1]
    assert fingerprint() != before


@pytest.mark.parametrize("widget", [("steps", 3), ("num_frames", 9), ("width", 128)])
def test_a_widget_of_another_node_is_read_from_the_graph_and_makes_it_check_again(widget, nodes, loaded):
    name, value = widget
    reports = {preflight(nodes, loaded, **change).args[0] for change in ({}, {name: value})}
    fingerprints = set()
    for change in ({}, {name: value}):
        run_in(graph_of(**change), nodes)
        fingerprints.add(nodes["MultiTalkPreflight"].fingerprint_inputs())
    assert len(reports) == len(fingerprints) == 2


def test_the_widgets_are_those_of_the_sampler_with_the_same_model(nodes):
    module = sys.modules[f"{pack.NAME}.nodes.graph"]
    graph = graph_of(steps=7, num_frames=9)
    other = {"class_type": "MultiTalkSampler", "inputs": {"model": ["8", 0], "steps": 99, "audio_embeds": ["5", 0]}}
    audio = {"class_type": "MultiTalkEncodeAudio", "inputs": {"num_frames": 77}}
    sampler, encode, _ = module.run_widgets({"0": other, "5": audio} | graph, "1")
    assert (sampler["steps"], encode["num_frames"]) == (7, 9)
    graph["1"]["inputs"]["model"] = ["8", 0]
    sampler, encode, _ = module.run_widgets({"0": other, "5": audio} | graph, "1")
    assert (sampler["steps"], encode["num_frames"]) == (99, 77)


def test_a_linked_widget_counts_as_its_primitive_says_and_else_as_its_default(nodes):
    module = sys.modules[f"{pack.NAME}.nodes.graph"]
    graph = graph_of(steps=["6", 0], shift=["7", 0])
    graph["6"] = {"class_type": "PrimitiveInt", "inputs": {"value": 11}}
    sampler, *_ = module.run_widgets(graph, "1")
    assert (sampler["steps"], sampler["shift"]) == (11, 0.0)
    assert module.run_widgets({}, "1")[1]["fps"] == 25.0


def test_two_voices_without_places_share_the_picture(nodes, loaded):
    report, can_run = preflight(nodes, loaded, audio_2=voice()).args
    assert can_run, report


def test_a_start_that_is_too_late_is_told_beside_all_else(nodes, loaded):
    report, can_run = preflight(nodes, loaded, start_times="20000", width=65).args
    assert not can_run and "start must be in 0.." in report and "width must be a multiple of 16" in report


def test_notes_do_not_keep_from_running(nodes, loaded):
    report, can_run = preflight(nodes, loaded, audio_1=voice(level=0.0), num_frames=100).args
    assert can_run and "Voice 1 is silent" in report and "The voices end after 2.0 s" in report


def test_without_a_picture_it_says_what_to_connect(nodes, loaded):
    report, can_run = preflight(nodes, loaded, image=None).args
    assert can_run and "Connect image and audio_1" in report and "windows:" not in report


def test_a_first_look_is_one_short_window(nodes, loaded):
    report, _ = preflight(nodes, loaded, num_frames=1000, options=long_video(nodes, first_look=True)).args
    assert "1 of 41 frames for 41 frames" in report
    report, _ = preflight(nodes, loaded, num_frames=21, options=long_video(nodes, first_look=True)).args
    assert "1 of 21 frames for 21 frames" in report


def test_the_forecasts_interval_may_be_set(nodes):
    widgets = dict(cache="Taylor forecast", threshold=0.0, warmup=2, guidance_every=1, guidance_until=0.05,
                   attention="auto", compile="auto", skip_tail=False, projected_guidance=False)  # fmt: skip
    node = nodes["MultiTalkAccelerationOptions"]
    assert node.execute(**widgets, interval=8).args[0].acceleration.interval == 8
    (interval,) = (widget for widget in node.GET_SCHEMA().inputs if widget.id == "interval")
    assert interval.default == 3


def test_encoded_inputs_stand_in_for_raw_ones(nodes, loaded):
    embeds = sys.modules[f"{pack.NAME}.pipeline.audio.embeds"].AudioEmbeds(torch.zeros(1, 60, 2, 128), 50)
    conditioning = importlib.import_module(f"{pack.NAME}.pipeline.conditioning.conditioning").Conditioning(
        torch.zeros(1, 64, 64, 3, dtype=torch.uint8), (torch.zeros(7, TEXT_DIM),), torch.zeros(9, TEXT_DIM), vae=None,
        image_embeds=torch.zeros(5, IMAGE_DIM),
    )  # fmt: skip
    inputs = dict(image=None, audio_1=None, audio_embeds=embeds, conditioning=conditioning)
    raw, (encoded, can_run) = preflight(nodes, loaded).args[0], preflight(nodes, loaded, **inputs).args
    assert can_run, encoded
    assert [line for line in encoded.splitlines() if "windows" in line] == [
        line for line in raw.splitlines() if "windows" in line
    ]
    other = dataclasses.replace(embeds, features=torch.zeros(1, 60, 12, 768))
    report, can_run = preflight(nodes, loaded, **inputs | {"audio_embeds": other}).args
    assert (
        not can_run and "The audio embeds have (12, 768) layers x channels, the audio weights take (2, 128)" in report
    )
    video = dataclasses.replace(
        conditioning, source=torch.zeros(9, 64, 64, 3, dtype=torch.uint8), image_embeds=torch.zeros(257, 1024)
    )
    report, can_run = preflight(nodes, loaded, **inputs | {"conditioning": video}).args
    assert not can_run and "A video of 9 frames" in report and "The tokens of the image have 1024 channels" in report


def test_the_time_is_estimated_once_a_run_was_measured(nodes, loaded, folders, monkeypatch):
    speed = sys.modules[f"{pack.NAME}.pipeline.preflight.timings"]
    runs = folders[1] / "user" / "__multitalk" / "runs"
    runs.mkdir(parents=True)
    facts = "cpu, 2 blocks of 256"
    assert "not measured" in preflight(nodes, loaded).args[0]
    host = sys.modules[f"{pack.NAME}.nodes.comfy_host"].PreflightHost()
    sampler, options = (sys.modules[f"{pack.NAME}.nodes.{name}"] for name in ("sampler", "options"))
    checks = sys.modules[f"{pack.NAME}.pipeline.preflight.checks"]
    run_spec = sys.modules[f"{pack.NAME}.pipeline.generation.run_spec"]
    problems = sys.modules[f"{pack.NAME}.pipeline.errors"].Problems()
    widgets = {name: value for name, value in WIDGETS["MultiTalkSampler"].items() if name != "keep_frames"}
    config = sampler.sampling_config(options.SamplerOptions(), fps=25.0, **widgets)
    spec = run_spec.make_run_spec(config, loaded["model"].recipe, (64, 64), 50)
    setup = sampler.run_setup(loaded["model"], options.SamplerOptions(), keep_frames=True)
    estimate = checks.check_run(spec, checks.RunInputs(), setup, problems, host)
    monkeypatch.setattr(speed, "time", SimpleNamespace(monotonic=iter((7.0, 49.0)).__next__))
    with checks.timed(spec, setup, estimate, host):
        pass
    (kind,) = json.loads((runs / speed.FILE).read_text())
    assert kind.startswith(facts)
    assert "time: about 42 s" in preflight(nodes, loaded).args[0]


def test_models_of_other_nodes_are_counted_as_room_and_left_alone(nodes, monkeypatch):
    management = sys.modules["comfy.model_management"]
    guest = dataclasses.make_dataclass("Guest", ["device", "model_loaded_memory", "is_dead"])
    models = [
        guest(torch.device("cpu"), lambda: 5, lambda: False),
        guest(torch.device("meta"), lambda: 7, lambda: False),
        guest(torch.device("cpu"), lambda: pytest.fail("its model is gone"), lambda: True),
    ]
    monkeypatch.setattr(management, "current_loaded_models", models)
    monkeypatch.setattr(management, "free_memory", lambda *_: pytest.fail("a model was made to leave"))
    monkeypatch.setattr(management, "get_free_memory", lambda device: 100)
    assert sys.modules[f"{pack.NAME}.nodes.comfy_host"].PreflightHost().free_memory() == 105
