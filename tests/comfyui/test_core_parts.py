"""Core's loaders serve as well as ours; their models and ours make room for each other."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from multitalk_pack.pipeline.weights.build import load_image_encoder, load_text_encoder
from PIL import Image
from safetensors.torch import save_file
from support import pack
from support.comfy_server import NEEDS_COMFYUI
from support.workflow_files import inputs_of, small

pytestmark = NEEDS_COMFYUI
QUALITY = pack.PACK / "workflows" / "api" / "single_speaker_quality.json"
SIDE = 224  # CLIP's own: core resizes a picture with antialiasing, the model was trained without
RUN_S = 300
TEXT, VISION, VAE = "umt5_xxl_fp8_e4m3fn_scaled.safetensors", "tiny_core_vision.safetensors", "wan_2.1_vae.safetensors"
BFLOAT16 = 2  # levels of 255: our text encoder computes in bfloat16 as it was trained, core in float32
UMT5 = {"dense_act_fn": "gelu_pytorch_tanh", "is_gated_act": True, "model_type": "umt5"}  # as core's file says
PROMPT = "A woman is talking to the camera"


@pytest.fixture(scope="module")
def configs(server) -> dict[str, str]:
    """Sizes of the tiny encoders in the words of core's own configurations; the tower is written as core reads it."""
    models = server.base / "models"
    text = load_text_encoder(models / "text_encoders" / TEXT).model.config
    tower = load_image_encoder(models / "clip_vision" / "clip_vision_h.safetensors").model
    state = {f"vision_model.{name.removeprefix('vision_model.')}": part for name, part in tower.state_dict().items()}
    save_file({name: part.clone() for name, part in state.items()}, models / "clip_vision" / VISION)
    vision = {name: getattr(tower.config, name) for name in (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "patch_size", "image_size",
        "hidden_act", "layer_norm_eps", "num_channels", "projection_dim")}  # fmt: skip
    return {
        "text": json.dumps({name: getattr(text, name) for name in (
            "d_ff", "d_kv", "d_model", "num_heads", "num_layers", "vocab_size")} | UMT5),
        "vision": json.dumps(vision | {"model_type": "clip_vision_model"}),
    }  # fmt: skip


def graph() -> dict:
    """The quality workflow at CLIP's size, its frames saved as pictures."""
    prompt = small(json.loads(QUALITY.read_text()), num_frames=5)
    inputs_of(prompt, "MultiTalkCondition").update(width=SIDE, height=SIDE, prompt=PROMPT, negative_prompt="worst")
    inputs_of(prompt, "MultiTalkSampler")["keep_frames"] = True
    sampler = next(number for number, entry in prompt.items() if entry["class_type"] == "MultiTalkSampler")
    video = next(number for number, entry in prompt.items() if entry["class_type"] == "SaveVideo")
    prompt[video] = {"class_type": "SaveImage", "inputs": {"images": [sampler, 0], "filename_prefix": "parts"}}
    return prompt


def with_core(configs: dict[str, str], parts: tuple[str, ...], words: str = PROMPT) -> dict:
    """The graph with core's nodes in the place of our loaders."""
    prompt = graph()
    condition = inputs_of(prompt, "MultiTalkCondition")
    condition["image"] = ["fitted", 0]
    prompt["fitted"] = {
        "class_type": "ImageScale",
        "inputs": {"image": ["1", 0], "width": SIDE, "height": SIDE, "upscale_method": "bilinear", "crop": "center"},
    }
    if "vae" in parts:
        prompt["vae"] = {"class_type": "VAELoader", "inputs": {"vae_name": VAE}}
        condition["vae"] = ["vae", 0]
    if "image" in parts:
        prompt["tower"] = {"class_type": "TinyClipVision", "inputs": {"file": VISION, "config": configs["vision"]}}
        inputs = {"clip_vision": ["tower", 0], "image": ["fitted", 0], "crop": "none"}
        prompt["vision"] = {"class_type": "CLIPVisionEncode", "inputs": inputs}
        condition["image_encoder"] = ["vision", 0]
    if "text" in parts:
        prompt["clip"] = {"class_type": "TinyClip", "inputs": {"file": TEXT, "config": configs["text"]}}
        for name, text in (("positive", words), ("negative", "worst")):
            prompt[name] = {"class_type": "CLIPTextEncode", "inputs": {"clip": ["clip", 0], "text": text}}
            condition[name] = [name, 0]
        del condition["text_encoder"]
    return prompt


def pictures(server, prompt: dict) -> np.ndarray:
    """The frames `f h w c` that the graph makes."""
    history = server.wait(server.queue(prompt), RUN_S)
    assert history["status"]["status_str"] == "success", history["status"]["messages"]
    images = [
        entry for output in history["outputs"].values() for entry in output["images"] if entry["type"] == "output"
    ]
    files = [Path(server.base, "output", entry["subfolder"], entry["filename"]) for entry in images]
    return np.stack([np.asarray(Image.open(io.BytesIO(file.read_bytes()))) for file in files]).astype(int)


@pytest.mark.parametrize("parts", [("vae",), ("image",), ("text",), ("vae", "image", "text")], ids="+".join)
def test_cores_loaders_give_what_ours_give(parts, server, configs):
    ours = pictures(server, with_core(configs, ()))
    difference = np.abs(pictures(server, with_core(configs, parts)) - ours)
    assert difference.mean() < 0.1 and difference.max() <= (BFLOAT16 if "text" in parts else 1)


@pytest.mark.parametrize(
    ("parts", "words", "filter_node"), [(("text",), "two quick foxes", None), (("image",), PROMPT, "ImageInvert")]
)
def test_the_frames_depend_on_cores_encoders(parts, words, filter_node, server, configs):
    ours = pictures(server, with_core(configs, ()))
    prompt = with_core(configs, parts, words)
    if filter_node:
        prompt["filter"] = {"class_type": filter_node, "inputs": {"image": ["fitted", 0]}}
        prompt["vision"]["inputs"]["image"] = ["filter", 0]
    difference = np.abs(pictures(server, prompt) - ours)
    assert difference.mean() > 1 and difference.max() > 10 * BFLOAT16


@pytest.mark.parametrize(("size", "guest_bytes"), [(6_000, 4_000), (6_001, 0), (10_000, 0)])
def test_a_guest_leaves_only_where_ours_need_the_room_and_comes_back_whole(size, guest_bytes, server):
    prompt = {"1": {"class_type": "MakeRoom", "inputs": {"size": size}}}
    history = server.wait(server.queue(prompt), RUN_S)
    assert history["status"]["status_str"] == "success", history["status"]["messages"]
    assert history["outputs"]["1"]["room"] == [{"free": 10_000 - guest_bytes, "left": guest_bytes, "back": True}]
