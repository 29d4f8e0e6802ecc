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
SETTINGS = {
    "num_frames": 0, "steps": 2, "text_cfg_scale": 5.0, "audio_cfg_scale": 4.0, "shift": 0.0, "acceleration": "none",
    "keep_frames": True, "fps": 25.0, "multi_audio_type": "para", "start_times": "", "resolution": "custom",
    "width": 64, "height": 64, "num_speakers": 1,
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
    """What the loaders hand on, by the preflight's sockets."""
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


def ask(nodes, loaded, **changes):
    """Report and verdict for a run that works, with some inputs changed."""
    given = SETTINGS | loaded | {"image": image(), "audio_1": voice()} | changes
    return nodes["MultiTalkPreflight"].execute(**{name: value for name, value in given.items() if value is not None})


def long_video(nodes, **changes):
    """What the long video options hand on, with some of their widgets changed."""
    node = nodes["MultiTalkLongVideoOptions"]
    usual = {widget.id: widget.options["default"] for widget in node.GET_SCHEMA().inputs if widget.id != "options"}
    return node.execute(**usual | changes).args[0]


def test_a_run_that_works_is_estimated_on_the_node_and_as_text(nodes, loaded):
    output = ask(nodes, loaded)
    report, can_run = output.args
    assert can_run and output.ui.value == report
    assert sys.modules["server"].PromptServer.instance.texts[-1] == ("1", report)
    for text in ("Nothing was found", "1 of 53 frames for 50 frames (2.0 s) of 64x64", "at most 6, 224 tokens each",
                 "not measured on this machine", "blocks stay on the device", "RAM: about", "disk: up to"):  # fmt: skip
        assert text in report, report


def test_all_problems_are_told_at_once_and_none_is_raised(nodes, loaded):
    output = ask(
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
        "audio: Voice 1 holds NaN", "acceleration: High acceleration with 2 steps",
    ):  # fmt: skip
        assert text in report, report


MISTAKES = {
    "two voices, one place": ({"audio_2": voice()}, "2 voices need as many places in the picture, got 1"),
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
def test_a_mistake_is_shown(name, nodes, loaded):
    changes, said = MISTAKES[name]
    if "options" in changes:
        plan, frames, motion = changes["options"]
        options = long_video(nodes, plan=plan, window_frames=frames, motion_frames=motion)
        changes = {"options": options, "num_frames": 300}
    report, can_run = ask(nodes, loaded, **changes).args
    assert not can_run and said in report, report


def test_after_a_refusal_another_look_is_taken_and_after_a_clean_one_none(nodes, loaded):
    node = nodes["MultiTalkPreflight"]
    before = node.fingerprint_inputs(steps=2)
    ask(nodes, loaded)
    assert node.fingerprint_inputs(steps=2) == before
    assert not ask(nodes, loaded, width=65).args[1]
    assert node.fingerprint_inputs(steps=2) != before


def test_a_start_that_is_too_late_is_told_beside_all_else(nodes, loaded):
    report, can_run = ask(nodes, loaded, start_times="20000", width=65).args
    assert not can_run and "start must be in 0.." in report and "width must be a multiple of 16" in report


def test_notes_do_not_keep_from_running(nodes, loaded):
    report, can_run = ask(nodes, loaded, audio_1=voice(level=0.0), num_frames=100).args
    assert can_run and "Voice 1 is silent" in report and "The voices end after 2.0 s" in report


def test_without_a_picture_it_says_what_to_connect(nodes, loaded):
    report, can_run = ask(nodes, loaded, image=None).args
    assert can_run and "Connect image and audio_1" in report and "windows:" not in report


def test_a_first_look_is_one_short_window(nodes, loaded):
    report, _ = ask(nodes, loaded, num_frames=1000, options=long_video(nodes, first_look=True)).args
    assert "1 of 41 frames for 41 frames" in report
    report, _ = ask(nodes, loaded, num_frames=21, options=long_video(nodes, first_look=True)).args
    assert "1 of 21 frames for 21 frames" in report


def test_the_forecasts_interval_may_be_set_and_may_be_missing_in_older_graphs(nodes):
    widgets = dict(cache="Taylor forecast", threshold=0.0, warmup=2, guidance_every=1, guidance_until=0.05,
                   attention="auto", compile=False, skip_tail=False, projected_guidance=False)  # fmt: skip
    node = nodes["MultiTalkAccelerationOptions"]
    assert node.execute(**widgets, interval=8).args[0].acceleration.interval == 8
    assert node.execute(**widgets).args[0].acceleration.interval == 3


def test_an_endpoint_that_speaks_a_text_takes_no_voice(nodes):
    remote = importlib.import_module(f"{pack.NAME}.nodes.remote")
    errors = importlib.import_module(f"{pack.NAME}.pipeline.errors")
    with pytest.raises(errors.ConfigError, match=r"single-text takes no voice.*Choose fal-ai/ai-avatar\."):
        remote._media(remote.ENDPOINTS["fal-ai/ai-avatar/single-text"], None, [object()], 145)


def test_encoded_inputs_stand_in_for_raw_ones(nodes, loaded):
    embeds = sys.modules[f"{pack.NAME}.pipeline.audio.embeds"].AudioEmbeds(torch.zeros(1, 60, 2, 128), 50)
    conditioning = importlib.import_module(f"{pack.NAME}.pipeline.conditioning.conditioning").Conditioning(
        torch.zeros(3, 1, 64, 64), (torch.zeros(7, TEXT_DIM),), torch.zeros(9, TEXT_DIM), vae=None,
        image_embeds=torch.zeros(5, IMAGE_DIM),
    )  # fmt: skip
    given = dict(image=None, audio_1=None, audio_embeds=embeds, conditioning=conditioning)
    raw, (encoded, can_run) = ask(nodes, loaded).args[0], ask(nodes, loaded, **given).args
    assert can_run, encoded
    assert [line for line in encoded.splitlines() if "windows" in line] == [
        line for line in raw.splitlines() if "windows" in line
    ]
    other = dataclasses.replace(embeds, features=torch.zeros(1, 60, 12, 768))
    report, can_run = ask(nodes, loaded, **given | {"audio_embeds": other}).args
    assert not can_run and "They have 12 layers of 768, the audio weights want 2 of 128" in report
    video = dataclasses.replace(conditioning, source=torch.zeros(3, 9, 64, 64), image_embeds=torch.zeros(257, 1024))
    report, can_run = ask(nodes, loaded, **given | {"conditioning": video}).args
    assert not can_run and "A video of 9 frames" in report and "The tokens of the image have 1024 channels" in report


def test_the_time_is_told_once_a_run_was_measured(nodes, loaded, folders, monkeypatch):
    speed = sys.modules[f"{pack.NAME}.pipeline.preflight.timings"]
    runs = folders[1] / "user" / "__multitalk" / "runs"
    runs.mkdir(parents=True)
    facts = "cpu, 2 blocks of 256"
    assert "not measured" in ask(nodes, loaded).args[0]
    host = sys.modules[f"{pack.NAME}.nodes.comfy_host"].PreflightHost()
    inspect = sys.modules[f"{pack.NAME}.pipeline.preflight.checks"]
    problems = sys.modules[f"{pack.NAME}.pipeline.errors"].Problems()
    settings = sys.modules[f"{pack.NAME}.nodes.settings"].Settings(
        0, 2, 5.0, 4.0, 0.0, "none", True, sys.modules[f"{pack.NAME}.nodes.options"].SamplerOptions()
    )
    config_module = sys.modules[f"{pack.NAME}.pipeline.config"]
    config = settings.config(loaded["model"].recipe, config_module.Resolution.P480)
    draft = dataclasses.replace(settings.draft(loaded["model"], config), num_frames=50, target=(64, 64))
    found = inspect.inspect(draft, problems, host)
    monkeypatch.setattr(speed, "time", SimpleNamespace(monotonic=iter((7.0, 49.0)).__next__))
    with inspect.measuring(draft, found, host):
        pass
    (kind,) = json.loads((runs / speed.FILE).read_text())
    assert kind.startswith(facts)
    assert "time: about 42 s" in ask(nodes, loaded).args[0]


def test_models_of_other_nodes_are_counted_as_room_and_left_alone(nodes, monkeypatch):
    management = sys.modules["comfy.model_management"]
    held = dataclasses.make_dataclass("Held", ["device", "model_loaded_memory", "is_dead"])
    models = [
        held(torch.device("cpu"), lambda: 5, lambda: False),
        held(torch.device("meta"), lambda: 7, lambda: False),
        held(torch.device("cpu"), lambda: pytest.fail("its model is gone"), lambda: True),
    ]
    monkeypatch.setattr(management, "current_loaded_models", models)
    monkeypatch.setattr(management, "free_memory", lambda *_: pytest.fail("a model was made to leave"))
    monkeypatch.setattr(management, "get_free_memory", lambda device: 100)
    assert sys.modules[f"{pack.NAME}.nodes.comfy_host"].PreflightHost().free_memory() == 105
