"""Every shipped workflow, on the real node classes with tiny weights in the places of the real files."""

import json
import math
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from support import pack
from support.workflow_runner import Rejected, Runner, check

PACK = pack.PACK
WORKFLOWS = sorted((PACK / "workflows" / "api").glob("*.json"))
LOCAL = [path for path in WORKFLOWS if path.stem != "remote"]
PLACES = {
    "transformer": ("diffusion_models", ["wan2.1_i2v_480p_14B_fp8_scaled", "wan2.1_i2v_480p_demo"]),
    "adapter": ("model_patches", ["WanVideo_2_1_Multitalk_14B_fp8_e4m3fn", "multitalk_demo"]),
    "vae": ("vae", ["wan_2.1_vae", "wan_2.1_vae_demo"]),
    "text_encoder": ("text_encoders", ["umt5_xxl_fp8_e4m3fn_scaled", "umt5_demo"]),
    "image_encoder": ("clip_vision", ["clip_vision_h", "clip_vision_h_demo"]),
    "audio_encoder": ("audio_encoders", ["wav2vec2-chinese-base_fp16", "wav2vec2_demo"]),
}
LORA = "lightx2v_I2V_14B_480p_cfg_step_distill_rank64_bf16"


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    models, work = tmp_path_factory.mktemp("models"), tmp_path_factory.mktemp("work")
    module = pack.load(models, work)
    nodes = pack.node_classes(module)
    _write_models(models)
    return nodes


@pytest.fixture(scope="module")
def runner(nodes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("input")
    picture = (np.random.default_rng(0).random((90, 120, 3)) * 255).astype("uint8")
    Image.fromarray(picture).save(folder / "portrait.png")
    time = torch.arange(16000) / 16000
    voice = {"waveform": (0.3 * torch.sin(2 * math.pi * 220 * time))[None, None].repeat(1, 2, 1), "sample_rate": 16000}
    images = ("portrait.png", "two_people.png", "multitalk_demo_portrait.png")
    voices = ("speech.wav", "answer.wav", "multitalk_demo_speech.wav")
    return Runner(nodes, {name: folder / "portrait.png" for name in images} | dict.fromkeys(voices, voice))


def _write_models(models: Path) -> None:
    """Tiny files under the names that the workflows ask for."""
    from multitalk.pipeline.weights.key_maps import native_transformer_key  # noqa: F401 - the package under its name
    from multitalk.pipeline.weights.tiny import write_tiny
    from safetensors.torch import load_file, save_file

    files = write_tiny(models / "made")
    for part, (key, names) in PLACES.items():
        (models / key).mkdir(exist_ok=True)
        for name in names:
            shutil.copy(getattr(files, part), models / key / f"{name}.safetensors")
    weight = load_file(files.transformer)["blocks.0.self_attn.q.weight"]
    lora = {
        "diffusion_model.blocks.0.self_attn.q.lora_down.weight": torch.randn(2, weight.shape[1]) * 0.01,
        "diffusion_model.blocks.0.self_attn.q.lora_up.weight": torch.randn(weight.shape[0], 2) * 0.01,
    }
    (models / "loras").mkdir(exist_ok=True)
    save_file(lora, models / "loras" / f"{LORA}.safetensors")


def small(prompt: dict) -> dict:
    """The workflow at a size that runs in seconds: a small picture and two steps."""
    for entry in prompt.values():
        if entry["class_type"] == "MultiTalkCondition":
            entry["inputs"] |= {"resolution": "custom", "width": 64, "height": 64}
        if entry["class_type"] == "MultiTalkSampler":
            entry["inputs"] |= {"num_frames": min(entry["inputs"]["num_frames"], 9), "steps": 2, "acceleration": "none"}
    return prompt


@pytest.mark.parametrize("path", LOCAL, ids=lambda path: path.stem)
def test_a_workflow_runs_to_a_video_with_sound(path, runner):
    prompt = small(json.loads(path.read_text()))
    outputs = runner.run(prompt)
    sampler = next(n for n, entry in prompt.items() if entry["class_type"] == "MultiTalkSampler")
    frames, video, audio, fps = outputs[sampler]
    asked = prompt[sampler]["inputs"]["num_frames"]
    with av.open(video.path) as container:
        pictures = list(container.decode(video=0))
        sound = container.streams.audio[0]
        assert float(sound.duration * sound.time_base) == pytest.approx(len(pictures) / 25, abs=0.04)
    assert fps == 25 and audio["sample_rate"] == 16000
    if asked:
        assert len(pictures) == asked
    if prompt[sampler]["inputs"]["keep_frames"]:
        assert frames.shape == (len(pictures), 64, 64, 3) and frames.min() >= 0 and frames.max() <= 1
    else:
        assert frames is None


def test_a_new_seed_runs_only_the_sampler_again(runner):
    prompt = small(json.loads((PACK / "workflows" / "api" / "single_speaker_quality.json").read_text()))
    runner.run(prompt)
    sampler = next(entry for entry in prompt.values() if entry["class_type"] == "MultiTalkSampler")
    sampler["inputs"]["seed"] += 1
    runner.run(prompt)
    assert runner.ran == ["MultiTalkSampler", "SaveVideo"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_the_page_and_the_queue_show_the_same_graph(path, nodes):
    api = json.loads(path.read_text())
    page = json.loads((PACK / "workflows" / path.name).read_text())
    check(api, nodes)
    kinds = {str(node["id"]): node for node in page["nodes"] if node["type"] != "MarkdownNote"}
    assert {number: node["type"] for number, node in kinds.items()} == {n: e["class_type"] for n, e in api.items()}
    links = {link[0]: link for link in page["links"]}
    for number, entry in api.items():
        linked = {
            socket["name"]: [str(links[socket["link"]][1]), links[socket["link"]][2]]
            for socket in kinds[number]["inputs"]
            if socket["link"] is not None
        }
        assert linked == {name: value for name, value in entry["inputs"].items() if isinstance(value, list)}
        properties = kinds[number]["properties"]
        assert properties["Node name for S&R"] == entry["class_type"] and properties["cnr_id"] and properties["ver"]
        for model in properties.get("models", []):
            assert model["name"] in kinds[number]["widgets_values"] and model["url"].endswith(model["name"])


def test_a_wrong_value_is_rejected_before_it_runs(nodes):
    prompt = small(json.loads((PACK / "workflows" / "api" / "single_speaker_quality.json").read_text()))
    sampler = next(entry for entry in prompt.values() if entry["class_type"] == "MultiTalkSampler")
    sampler["inputs"]["steps"] = 0
    with pytest.raises(Rejected, match="steps"):
        check(prompt, nodes)
