"""Nodes for the tests alone: core's own classes at tiny sizes, and a guest in ComfyUI's model management."""

import json
import sys
from pathlib import Path
from unittest.mock import patch

import comfy.model_management as mm
import comfy.sd
import comfy.text_encoders.t5
import comfy.text_encoders.wan
import folder_paths
import torch
from comfy import sd1_clip
from comfy.clip_vision import ClipVisionModel
from comfy.model_patcher import ModelPatcher
from comfy.utils import load_torch_file


class TinyUmt5(sd1_clip.SDClipModel):
    """Core's umT5 with the sizes of the tiny file instead of XXL's."""

    def __init__(self, device="cpu", layer="last", layer_idx=None, dtype=None, model_options=None):
        super().__init__(
            device=device, layer=layer, layer_idx=layer_idx, dtype=dtype, model_options=model_options or {},
            textmodel_json_config=json.loads(TinyUmt5.config), special_tokens={"end": 1, "pad": 0},
            model_class=comfy.text_encoders.t5.T5, enable_attention_masks=True, zero_out_masked=True,
        )  # fmt: skip


class TinyWanText(sd1_clip.SD1ClipModel):
    """Core's text model of Wan, around the tiny umT5."""

    def __init__(self, device="cpu", dtype=None, model_options=None):
        super().__init__(
            device=device, dtype=dtype, model_options=model_options or {}, name="umt5xxl", clip_model=TinyUmt5
        )


class TinyClip:
    """CLIP as core's Load CLIP gives it, which knows the real size alone."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("CLIP",), "load", "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"file": ("STRING",), "config": ("STRING",)}}

    def load(self, file: str, config: str):
        TinyUmt5.config = config
        state = load_torch_file(folder_paths.get_full_path_or_raise("text_encoders", file))
        tokenizer = {"spiece_model": state.pop("spiece_model")}

        class Target:
            params = {}  # noqa: RUF012 - read as core reads its own
            clip, tokenizer = TinyWanText, comfy.text_encoders.wan.WanT5Tokenizer

        clip = comfy.sd.CLIP(Target, tokenizer_data=tokenizer)
        missing, unexpected = clip.cond_stage_model.umt5xxl.transformer.load_state_dict(state, strict=False)
        if missing or unexpected:
            raise ValueError(f"missing {missing}, unexpected {unexpected}")
        return (clip,)


class TinyClipVision:
    """CLIP_VISION as core's Load CLIP Vision gives it, which knows the real sizes alone."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("CLIP_VISION",), "load", "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"file": ("STRING",), "config": ("STRING",)}}

    def load(self, file: str, config: str):
        sizes = Path(folder_paths.get_temp_directory(), "tiny_core_vision.json")  # older versions read files alone
        sizes.parent.mkdir(exist_ok=True)
        sizes.write_text(config)
        vision = ClipVisionModel(str(sizes))
        missing, unexpected = vision.load_sd(load_torch_file(folder_paths.get_full_path_or_raise("clip_vision", file)))
        if unexpected or [name for name in missing if "visual_projection" not in name]:
            raise ValueError(f"missing {missing}, unexpected {unexpected}")
        return (vision,)


class Card:
    """A GPU of a few bytes in the place of the CPU that the tests have: what the guests do not hold of it is free."""

    type = "cuda"

    def __init__(self, size: int):
        self.size = size

    def __eq__(self, other: object) -> bool:
        return other in (torch.device("cpu"), self) if isinstance(other, torch.device) else other is self

    def __hash__(self) -> int:
        return hash(self.type)

    def free(self, device: object = None, torch_free_too: bool = False) -> int | tuple[int, int]:
        """As `mm.get_free_memory`; with `torch_free_too` also what torch keeps for itself."""
        free = self.size - sum(loaded.model.loaded_size() for loaded in mm.current_loaded_models)
        return (free, 0) if torch_free_too else free


class MakeRoom:
    """Loads a guest of 4000 bytes by ComfyUI's management on a card of 10,000, and asks our host for room."""

    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "run", "tests", True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"size": ("INT", {"min": 0, "max": 10**9})}}

    def run(self, size: int):
        ours = next(module for name, module in sys.modules.items() if name.endswith("multitalk.nodes.comfy_host"))
        mm.unload_all_models()
        weight = torch.arange(1000.0)
        guest = ModelPatcher(torch.nn.Linear(1000, 1, bias=False), torch.device("cpu"), torch.device("cpu"))
        guest.model.weight.data = weight[None].clone()
        mm.load_models_gpu([guest])
        card = Card(10_000)
        with patch.object(ours.ComfyHost, "device", card), patch.object(mm, "get_free_memory", card.free):
            free = ours.ComfyHost().unload_others(size)
        left = guest.loaded_size()
        mm.load_models_gpu([guest])
        back = guest.loaded_size() == 4000 and torch.equal(guest.model.weight.data.cpu(), weight[None])
        return {"ui": {"room": [{"free": free, "left": left, "back": back}]}}


NODE_CLASS_MAPPINGS = {"TinyClip": TinyClip, "TinyClipVision": TinyClipVision, "MakeRoom": MakeRoom}
