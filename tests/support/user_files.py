"""The files that a person may choose: a complete tiny set, and all the wrong ones."""

import pickle
import wave

import numpy as np
import pytest
import torch
from multitalk_pack.benchmarks.tiny_weights import (
    WeightSizes,
    tiny_adapter,
    tiny_audio_encoder,
    tiny_image_encoder,
    tiny_text_encoder,
    tiny_transformer,
    write_tiny,
)
from PIL import Image
from safetensors.torch import save_file

from .tiny_models import make

OTHER = WeightSizes(width=128, text_width=32, image_width=80, speech_width=64)


class Files:
    """A complete tiny set, a portrait, a voice, and all the wrong files that people choose."""

    def __init__(self, folder):
        self.folder = folder
        tiny = write_tiny(folder)
        self.base, self.adapter, self.vae = tiny.transformer, tiny.adapter, tiny.vae
        self.text, self.image_encoder, self.speech = tiny.text_encoder, tiny.image_encoder, tiny.audio_encoder
        self.portrait, self.voice = folder / "portrait.png", folder / "voice.wav"
        Image.fromarray((np.random.default_rng(0).random((90, 120, 3)) * 255).astype("uint8")).save(self.portrait)
        Image.new("RGB", (8, 8)).save(folder / "speck.png")
        (folder / "text.png").write_text("no picture")
        write_wav(self.voice, (8000 * np.sin(np.arange(32000) / 20)).astype("<i2"))
        write_wav(folder / "empty.wav", np.zeros(0, "<i2"))
        (folder / "text.wav").write_text("no sound")
        self._write_weights()

    def _write_weights(self):
        base, adapter = make(tiny_transformer), make(tiny_adapter)
        self.save("t2v", {key: value for key, value in base.items() if "img" not in key} | patches(16))
        self.save("small", base | patches(36, 1536))
        self.save("cut", {key: value for key, value in base.items() if "blocks.1.ffn" not in key})
        self.save("merged", base | adapter)
        self.save("narrow_adapter", make(tiny_adapter, OTHER))
        self.save(
            "vae48", {"conv2.weight": torch.ones(48, 48, 1, 1, 1), "decoder.conv1.weight": torch.ones(2, 2, 1, 1, 1)}
        )
        text, name = make(tiny_text_encoder), "relative_attention_bias"
        self.save("t5", {key: value for key, value in text.items() if name not in key or "block.0" in key})
        self.save("narrow_text", make(tiny_text_encoder, OTHER))
        alone = self.folder / "alone"
        alone.mkdir()
        save_file({key: value for key, value in text.items() if key != "spiece_model"}, alone / "t.safetensors")
        self.save("vit_l", {"visual.pos_embedding": torch.ones(1, 257, 1024), "visual.cls_embedding": torch.ones(1)})
        self.save("narrow_image", make(tiny_image_encoder, OTHER))
        speech = make(tiny_audio_encoder)
        self.save("english", speech | {"lm_head.weight": torch.ones(2, 2)})
        self.save("large_speech", speech | {"wav2vec2.encoder.layer_norm.bias": torch.ones(1024)})
        self.save("whisper", {"encoder.embed_positions.weight": torch.ones(2, 2)})
        self.save("narrow_speech", make(tiny_audio_encoder, OTHER))
        self.save("lora", lora("diffusion_model.blocks.0.self_attn.q", 256))
        self.save("flux_lora", lora("diffusion_model.double_blocks.0.img_attn.proj", 256))
        self.save("wide_lora", lora("diffusion_model.blocks.0.self_attn.q", 1536))
        self.save("pose_lora", lora("dwpose_embedding.0", 256))
        self.save("half_lora", {"diffusion_model.blocks.0.self_attn.q.lora_down.weight": torch.ones(2, 256)})
        (self.folder / "pointer.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
        (self.folder / "page.safetensors").write_text("<!DOCTYPE html><html>Not found</html>")
        (self.folder / "empty.safetensors").write_bytes(b"")
        (self.folder / "half.safetensors").write_bytes(self.base.read_bytes()[:-1000])
        (self.folder / "code.pth").write_bytes(pickle.dumps(Code(), 2))

    def save(self, name, state):
        save_file({key: value.contiguous() for key, value in state.items()}, self.folder / f"{name}.safetensors")

    def __truediv__(self, name):
        return self.folder / name

    def fill(self, value):
        """An option's value with the folder put in."""
        if isinstance(value, list):
            return [self.fill(each) for each in value]
        return value.format(self.folder) if isinstance(value, str) else value


class Code:
    def __reduce__(self):
        return pytest.exit, ("code from a weights file ran",)


def patches(channels, width=256):
    return {"patch_embedding.weight": torch.ones(width, channels, 1, 2, 2)}


def lora(layer, width):
    return {f"{layer}.lora_down.weight": torch.ones(2, width), f"{layer}.lora_up.weight": torch.ones(width, 2)}


def write_wav(path, samples):
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(samples.tobytes())
