"""Mistakes are told all at once, in words that name the cure, before a tensor is read."""

import dataclasses
import pickle
import re
import shutil
import time
import wave
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import psutil
import pytest
import torch
from multitalk.pipeline.__main__ import DEMO_FILES, _parser, _request
from multitalk.pipeline.acceleration.accelerate import AccelerationOptions, CacheKind
from multitalk.pipeline.audio.dialogue import Arrangement, Speech
from multitalk.pipeline.audio.waveform import Sound
from multitalk.pipeline.conditioning.speakers import Place
from multitalk.pipeline.config import GenerationConfig, GuidanceConfig, Recipe, SamplingConfig, WindowConfig, WindowPlan
from multitalk.pipeline.errors import ConfigError, MultiTalkError
from multitalk.pipeline.findings import Findings
from multitalk.pipeline.memory import GB, Memory, MemoryConfig
from multitalk.pipeline.preflight import Draft, check_places, check_voices, describe, inspect, measuring
from multitalk.pipeline.request import look, run
from multitalk.pipeline.store import run_key
from multitalk.pipeline.weights import build, source
from multitalk.pipeline.weights.fit import WeightFiles
from multitalk.pipeline.weights.tiny import (
    TinySizes,
    tiny_adapter,
    tiny_audio_encoder,
    tiny_image_encoder,
    tiny_text_encoder,
    tiny_transformer,
    write_tiny,
)
from PIL import Image
from safetensors.torch import save_file
from support.run import RecordingHost

OTHER = TinySizes(width=128, text_width=32, image_width=80, speech_width=64)


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


def make(part, sizes=None):
    return part(sizes or TinySizes(), torch.Generator().manual_seed(1))


def patches(channels, width=256):
    return {"patch_embedding.weight": torch.ones(width, channels, 1, 2, 2)}


def lora(layer, width):
    return {f"{layer}.lora_down.weight": torch.ones(2, width), f"{layer}.lora_up.weight": torch.ones(width, 2)}


def write_wav(path, samples):
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(samples.tobytes())


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return Files(tmp_path_factory.mktemp("files"))


@pytest.fixture
def tensors_read(monkeypatch):
    """Counts the tensors that are taken out of weights files, by name."""
    counter = Counter()
    for kind in (source.MappedFile, source.Loaded, source.Together):
        monkeypatch.setattr(kind, "get", counted(kind.get, counter))
    return counter


@pytest.fixture
def no_tensor_is_read(tensors_read):
    yield
    assert tensors_read.total() == 0


def counted(get, counter):
    def get_and_count(source, key):
        counter[key] += 1
        return get(source, key)

    return get_and_count


def arguments(files, **changes):
    """A command line that runs, with some options changed; None leaves one out, a list gives it several times."""
    options = {
        "image": files.portrait, "audio": files.voice, "size": "64x64", "num-frames": 41, "base": files.base,
        "adapter": files.adapter, "vae": files.vae, "text-encoder": files.text, "image-encoder": files.image_encoder,
        "audio-encoder": files.speech, "output": files / "out" / "video.mp4", "device": "cpu",
    } | {name.replace("_", "-"): value for name, value in changes.items()}  # fmt: skip
    listed = []
    for name, value in options.items():
        for item in value if isinstance(value, list) else [value]:
            listed += [] if item is None else [f"--{name}"] if item is True else [f"--{name}={item}"]
    return listed


def problems_of(files, **changes):
    findings = Findings()
    request = _request(_parser().parse_args(arguments(files, **changes)), findings)
    look(request, findings, RecordingHost())
    return findings


class Mistake(NamedTuple):
    """What a person may do wrong, and what the message has to name."""

    changes: dict
    option: str
    came: str
    works: str


F = "{0}/"  # the folder of the files


def weights(name):
    return f"{F}{name}.safetensors"


TWO = [F + "voice.wav"] * 2
OPTIONS = {
    "steps": Mistake(dict(steps=0), "steps", "got 0", "in 1..1000"),
    "endless steps": Mistake(dict(steps=10**9), "steps", "got 1000000000", "in 1..1000"),
    "shift": Mistake(dict(shift=-1), "shift", "got -1.0", "7 suits 480p"),
    "seed": Mistake(dict(seed=-1), "seed", "got -1", "in 0..2^64-1"),
    "text scale": Mistake(dict(text_scale=200), "text scale", "got 200.0", "1 turns it off"),
    "audio scale": Mistake(dict(audio_scale="nan"), "audio scale", "got nan", "1 turns it off"),
    "frames below the card's": Mistake(dict(num_frames=40), "num_frames", "got 40", "in 41..241"),
    "frames above the card's": Mistake(dict(num_frames=242), "num_frames", "got 242", "Turn on long video"),
    "negative frames": Mistake(dict(num_frames=-5), "num_frames", "got -5", "0 takes the audio's length"),
    "endless frames": Mistake(dict(num_frames=10**9, long=True), "num_frames", "got 1000000000", "in 0..360000"),
    "width": Mistake(dict(size="65x64"), "size: width", "got 65", "The nearest is 64"),
    "height": Mistake(dict(size="64x0"), "size: height", "got 0", "The nearest is 16"),
    "size beyond measure": Mistake(dict(size="64x160000"), "size: height", "got 160000", "at most 4096"),
    "fps": Mistake(dict(fps=0), "fps", "got 0", "25 is the model's own"),
    "fps beyond measure": Mistake(dict(fps="1e308"), "fps", "got 1e+308", "in 1..120"),
    "few steps with guidance": Mistake(dict(acceleration="high", steps=4), "acceleration", "text scale of 5",
        "Set the text scale to 1"),
    "no image": Mistake(dict(image=None), "image", "There is none", "Name a portrait with --image"),
    "missing image": Mistake(dict(image=F + "no.png"), "image", "no.png", "Check the path"),
    "no picture": Mistake(dict(image=F + "text.png"), "image", "text.png is not an image", "Use PNG, JPEG or WebP"),
    "tiny picture": Mistake(dict(image=F + "speck.png"), "image", "8x8 pixels", "must be at least 16"),
    "no audio": Mistake(dict(audio=None), "audio", "There is none", "Name a voice with --audio"),
    **{f"no {option}": Mistake({option: None}, option, "There is none", f"Name its weights with --{option}")
       for option in ("base", "vae", "text-encoder", "image-encoder", "audio-encoder")},
    "missing audio": Mistake(dict(audio=F + "no.wav"), "audio", "no.wav", "Check the path"),
    "no sound": Mistake(dict(audio=F + "text.wav"), "audio", "text.wav cannot be read", "Convert it to WAV or MP3"),
    "picture as audio": Mistake(dict(audio=F + "portrait.png"), "audio", "portrait.png holds no audio",
        "Choose a file with sound"),
    "empty sound": Mistake(dict(audio=F + "empty.wav"), "audio", "empty.wav holds an audio track without a single",
        "Choose audio that sounds"),
    "boxes for fewer voices": Mistake(dict(audio=TWO, box="0,0,50,100"), "box", "got 1", "2 voices need as many"),
    "starts for fewer voices": Mistake(dict(audio=TWO, start=1), "start", "got 1", "2 voices need as many"),
    "start beyond measure": Mistake(dict(start=1e9), "audio: A speaker's start", "got 1e+09", "in 0..14400 seconds"),
    "box the wrong way round": Mistake(dict(audio=TWO, box=["60,0,10,100", "50,0,100,100"]), "box",
        "got (60.0, 0.0, 10.0, 100.0)", "with left < right"),
    "box outside": Mistake(dict(audio=TWO, box=["0,0,50,100", "110,0,150,100"]), "speakers: The box of speaker 2",
        "(110.0, 0.0, 150.0, 100.0)", "the image (120x90)"),
    "box cut off by the crop": Mistake(dict(audio=TWO, box=["0,0,5,100", "50,0,100,100"]), "speakers: Speaker 1",
        "2% from the left and 49% from the top", "Crop the image yourself"),
    "box too small": Mistake(dict(audio=TWO, box=["48,50,49,52", "50,0,100,100"]), "speakers: The place of speaker 1",
        "2 of 64x64 pixels", "at least 32x32 pixels"),
    "boxes in one place": Mistake(dict(audio=TWO, box=["20,0,80,100", "21,0,79,100"]), "speakers: Speakers 1 and 2",
        "100% of the smaller", "Mark each person alone"),
    "output in a file": Mistake(dict(output=F + "text.wav/video.mp4"), "output", "text.wav is a file",
        "Choose another"),
    "output is a folder": Mistake(dict(output=F[:-1]), "output", "is a folder", "such as video.mp4"),
    "output without end": Mistake(dict(output="x" * 5000), "output", "xxx cannot be used", "Choose another place"),
    "resume folder in a file": Mistake(dict(resume_folder=F + "text.wav"), "resume", "text.wav is a file",
        "Choose another place"),
    "no number as strength": Mistake(dict(lora=F + "lora.safetensors:strong"), "lora: The strength", "got strong",
        "a number such as 0.8"),
}  # fmt: skip
BASE = "the Wan2.1 image-to-video 14B model, e.g. wan2.1_i2v_480p_14B_*"
SPEECH = "wav2vec2-chinese-base_fp16.safetensors"
WEIGHTS = {
    "missing base": Mistake(dict(base=weights("no")), "base", "no.safetensors does not exist", "choose a weights file"),
    "text-to-video base": Mistake(dict(base=weights("t2v")), "base", "t2v.safetensors is a Wan2.1 text-to-video model",
        BASE),
    "1.3B base": Mistake(dict(base=weights("small")), "base", "small.safetensors is a Wan 1.3B model", BASE),
    "incomplete base": Mistake(dict(base=weights("cut")), "adapter",
        "cut.safetensors and multitalk_tiny.safetensors lack 2 of", "download a complete file"),
    "half a base": Mistake(dict(base=weights("half")), "base", "half.safetensors is incomplete", "download it again"),
    "adapter as base": Mistake(dict(base=weights("multitalk_tiny")), "base", "multitalk_tiny.safetensors contains only",
        "choose a Wan2.1 I2V model here"),
    "vae as base": Mistake(dict(base=weights("wan_2.1_vae_tiny")), "base",
        "wan_2.1_vae_tiny.safetensors is Wan2.1's VAE", BASE),
    "pointer": Mistake(dict(base=weights("pointer")), "base", "pointer.safetensors is a Git-LFS pointer",
        "download the file itself"),
    "web page": Mistake(dict(base=weights("page")), "base", "page.safetensors is a web page",
        "download the file itself"),
    "empty file": Mistake(dict(base=weights("empty")), "base", "empty.safetensors is empty", "download it again"),
    "code": Mistake(dict(base=F + "code.pth"), "base", "code.pth needs to run code", "convert it to safetensors"),
    "base as adapter": Mistake(dict(adapter=weights("wan2.1_i2v_480p_tiny")), "adapter",
        "wan2.1_i2v_480p_tiny.safetensors is a whole", "e.g. multitalk.safetensors here"),
    "adapter to a merged base": Mistake(dict(base=weights("merged")), "adapter", "merged.safetensors already contains",
        "leave the adapter empty"),
    "adapter of another size": Mistake(dict(adapter=weights("narrow_adapter")), "adapter",
        "narrow_adapter.safetensors has 2 blocks of width 128", "has 2 of width 256"),
    "vae of Wan2.2": Mistake(dict(vae=weights("vae48")), "vae", "vae48.safetensors is the 48-channel",
        "e.g. wan_2.1_vae.safetensors"),
    "text encoder as vae": Mistake(dict(vae=weights("umt5_tiny")), "vae", "umt5_tiny.safetensors is umT5",
        "wan_2.1_vae.safetensors"),
    "T5 of Flux": Mistake(dict(text_encoder=weights("t5")), "text_encoder",
        "t5.safetensors is a T5 text encoder as Flux and SD3", "e.g. umt5_xxl_fp8_e4m3fn_scaled.safetensors"),
    "narrow text encoder": Mistake(dict(text_encoder=weights("narrow_text")), "text_encoder",
        "narrow_text.safetensors gives tokens of width 32", "the model wants 64. Take UMT5-XXL"),
    "no tokenizer": Mistake(dict(text_encoder=weights("alone/t")), "text_encoder", "t.safetensors has no tokenizer",
        "put google/umt5-xxl's spiece.model next to it"),
    "ViT-L": Mistake(dict(image_encoder=weights("vit_l")), "image_encoder", "vit_l.safetensors is a ViT-L/14",
        "clip_vision_h.safetensors"),
    "narrow image encoder": Mistake(dict(image_encoder=weights("narrow_image")), "image_encoder",
        "narrow_image.safetensors gives tokens of width 80", "the model wants 160. Take clip_vision_h"),
    "English speech": Mistake(dict(audio_encoder=weights("english")), "audio_encoder",
        "english.safetensors is a wav2vec2 that was fine-tuned", "Use chinese-wav2vec2-base"),
    "large speech": Mistake(dict(audio_encoder=weights("large_speech")), "audio_encoder",
        "large_speech.safetensors is a large wav2vec2", SPEECH),
    "whisper": Mistake(dict(audio_encoder=weights("whisper")), "audio_encoder",
        "whisper.safetensors is a Whisper model", SPEECH),
    "narrow speech": Mistake(dict(audio_encoder=weights("narrow_speech")), "audio_encoder",
        "narrow_speech.safetensors has 2 layers of 64", "want 2 of 128. Take chinese-wav2vec2-base"),
    "missing LoRA": Mistake(dict(lora=weights("no_lora")), "lora", "no_lora.safetensors does not exist",
        "choose a weights file"),
    "adapter as LoRA": Mistake(dict(lora=weights("multitalk_tiny")), "lora",
        "multitalk_tiny.safetensors is MultiTalk's audio weights", "a LoRA for Wan2.1 14B"),
    "Flux LoRA": Mistake(dict(lora=weights("flux_lora")), "lora", "flux_lora.safetensors fits no layer",
        "Take a LoRA for Wan2.1 14B"),
    "wide LoRA": Mistake(dict(lora=weights("wide_lora")), "lora", "self_attn.q is 1536 wide in it and 256 in the model",
        "Take a LoRA for Wan2.1 14B"),
    "pose LoRA": Mistake(dict(lora=weights("pose_lora")), "lora", "pose_lora.safetensors is a UniAnimate pose LoRA",
        "use a plain LoRA for Wan2.1 14B"),
    "half a LoRA": Mistake(dict(lora=weights("half_lora")), "lora", "half_lora.safetensors is damaged",
        "download it again"),
}  # fmt: skip
MISTAKES = OPTIONS | WEIGHTS


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_with_its_cure_before_a_tensor_is_read(name, files, no_tensor_is_read):
    mistake = MISTAKES[name]
    (problem,) = problems_of(files, **{option: files.fill(value) for option, value in mistake.changes.items()}).problems
    assert problem.startswith(mistake.option) and mistake.came in problem and mistake.works in problem, problem


def assert_matches(message, text):
    with pytest.raises(MultiTalkError, match=message):
        raise MultiTalkError(text)


def test_there_are_more_than_forty_mistakes():
    assert len(MISTAKES) >= 40


def test_the_counter_sees_a_run_read_its_weights(files, tensors_read):
    build.load_transformer(files.base, files.adapter)
    assert tensors_read.total() > 40


def test_what_is_right_is_not_complained_of(files, no_tensor_is_read):
    findings = problems_of(files, lora=f"{files / 'lora.safetensors'}:0.5")
    assert findings.problems == [] and findings.notes == []


PARTS = ("base", "adapter", "vae", "text-encoder", "image-encoder", "audio-encoder")


def test_without_any_weights_the_small_model_is_taken_and_told(files, no_tensor_is_read):
    findings = problems_of(files, **dict.fromkeys(PARTS))
    assert findings.problems == []
    assert any("the small bundled model is used, which knows drawn faces only" in note for note in findings.notes)


def test_a_base_with_audio_weights_needs_no_adapter(files, no_tensor_is_read):
    assert problems_of(files, base=files / "merged.safetensors", adapter=None).problems == []


def test_a_demo_takes_what_is_named_and_the_rest_from_the_small_model():
    taken = _request(_parser().parse_args(["--demo", "--vae", "mine.safetensors"]), Findings()).files
    assert taken == dataclasses.replace(DEMO_FILES, vae=Path("mine.safetensors"))
    taken = _request(_parser().parse_args(["--demo", "--base", "merged.safetensors"]), Findings()).files
    assert taken == dataclasses.replace(DEMO_FILES, base=Path("merged.safetensors"), adapter=None)


def test_all_mistakes_are_told_at_once_within_two_seconds(files, no_tensor_is_read, tmp_path):
    findings, changes = Findings(), {}
    for mistake in ("steps", "width", "fps", "missing audio", "text-to-video base", "ViT-L", "wide LoRA"):
        changes |= MISTAKES[mistake].changes
    changes = {option: files.fill(value) for option, value in changes.items()}
    started = time.monotonic()
    request = _request(_parser().parse_args(arguments(files, **changes)), findings)
    with pytest.raises(ConfigError, match=r"(?s)6 things keep this from running:\n1. steps.*6. "):
        run(request, RecordingHost(), findings)
    assert time.monotonic() - started < 2


def audio(samples, rate_hz=16000):
    return Speech(Sound(torch.as_tensor(samples)[None].float(), rate_hz))


def draft(**changes):
    config = GenerationConfig(num_frames=0, allow_long=True, sampling=SamplingConfig(20))
    return dataclasses.replace(Draft(config, num_frames=200, target=(64, 64)), **changes)


def inspected(draft, free=8 * GB):
    findings, host = Findings(), RecordingHost()
    host.free_memory = lambda: free
    return findings, inspect(draft, findings, host)


def windows(**changes):
    return dataclasses.replace(draft().config, windows=WindowConfig(**changes))


DRAFTS = {
    "motion frames of the default window": (
        lambda: draft(config=windows(motion_frames=101)),
        "num_frames: A window of 97 frames cannot start with 101 motion frames. Hand on fewer"),
    "short audio for the published plan": (
        lambda: draft(config=windows(plan=WindowPlan.PUBLISHED), num_frames=60),
        r"num_frames: The published plan needs audio longer than a window of 81 frames.*exact plan"),
    "cache without steps": (
        lambda: draft(options=AccelerationOptions(CacheKind.TEA), config=GenerationConfig(sampling=SamplingConfig(4))),
        "acceleration: TeaCache finds nothing to reuse in 4 steps. Take at least 7"),
    "voices without places": (
        lambda: draft(num_voices=3, num_places=1), "speakers: 3 voices need as many places in the picture, got 1"),
    "a video to dub without InfiniteTalk": (
        lambda: draft(num_source_frames=9),
        "dub_video: A video of 9 frames is dubbed by InfiniteTalk's weights alone, got recipe multitalk. Set"),
    "odd size": (lambda: draft(target=(72, 64)), "size: 64x72 is not possible; both sides must be multiples of 16"),
}  # fmt: skip


@pytest.mark.parametrize("name", DRAFTS)
def test_options_that_do_not_go_together_are_told(name, no_tensor_is_read):
    make_draft, message = DRAFTS[name]
    findings, _ = inspected(make_draft())
    assert len(findings.problems) == 1, findings.problems
    assert_matches(message, findings.problems[0])


def test_features_of_another_encoder_are_told(files, no_tensor_is_read):
    findings, _ = inspected(draft(files=WeightFiles(files.base, files.adapter), audio_features=(12, 768)))
    assert_matches("audio_embeds: They have 12 layers of 768, the audio weights want 2 of 128", findings.problems[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"prompt_channels": (64, 768)},
            "conditioning: The tokens of the prompt have 768 channels, .* with umt5-xxl",
        ),
        ({"image_channels": 1024}, "conditioning: The tokens of the image have 1024 channels, .* with clip_vision_h"),
    ],
)
def test_tokens_of_other_encoders_are_told(changes, message, files, no_tensor_is_read):
    findings, _ = inspected(draft(files=WeightFiles(files.base, files.adapter), **changes))
    assert len(findings.problems) == 1
    assert_matches(message, findings.problems[0])


@pytest.mark.parametrize("memory", [MemoryConfig(Memory.ALL), MemoryConfig(resident_blocks=2)])
def test_memory_that_is_not_there_is_told_with_the_setting_that_fits(memory, files, no_tensor_is_read):
    parts = dict(files=WeightFiles(files.base, files.adapter), target=(480, 832), memory=memory)
    plenty, roomy = inspected(draft(**parts), 64 * GB)
    assert plenty.problems == [] and roomy.placement.resident_blocks == 2
    findings, _ = inspected(draft(**parts), GB // 5)
    assert_matches(
        r"memory: .* takes about .* GB, 0.2 GB .* are free. Even the smallest video needs", findings.problems[0]
    )
    least = inspected(draft(**parts | dict(memory=MemoryConfig(resident_blocks=0))), 64 * GB)[1].placement.estimate
    findings, _ = inspected(draft(**parts), least - 1)
    assert_matches("window_frames to [0-9]+, or take a smaller size", findings.problems[0])
    frames = int(re.search("window_frames to ([0-9]+)", findings.problems[0])[1])
    assert WindowConfig(num_frames=frames).num_frames == frames  # which the long video options take
    findings, _ = inspected(draft(**parts | dict(num_frames=41)), least // 3)
    assert "window_frames" not in findings.problems[0]  # none that is shorter has room for the motion frames


def test_disk_and_kept_frames_that_do_not_fit_are_told(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**6))
    findings, _ = inspected(draft(runs=tmp_path / "new" / "runs"))
    assert_matches(r"resume: Finished windows need up to 0.01 GB in .* turn resuming off", findings.problems[0])
    monkeypatch.undo()
    findings, _ = inspected(draft(keeps_frames=True, num_frames=90000, target=(960, 960)))
    assert_matches(
        "keep_frames: 90000 frames take .* Turn keep_frames off and take the video output", findings.problems[0]
    )
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10**6))
    findings, _ = inspected(draft())
    assert_matches("window_frames: A window of [0-9]+ frames takes .* GB are free. Take shorter", findings.problems[0])


def test_windows_that_are_kept_already_need_no_more_room(monkeypatch, tmp_path):
    needed = inspected(draft(runs=tmp_path))[1].disk_bytes
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed // 2))
    assert any("Finished windows" in problem for problem in inspected(draft(runs=tmp_path))[0].problems)
    kept = tmp_path / run_key("half of it")
    kept.mkdir()
    (kept / "0000.mkv").write_bytes(bytes(needed - needed // 2))
    assert not inspected(draft(runs=tmp_path))[0].problems


def test_a_video_longer_than_its_embeds_is_told():
    notes = inspected(draft(num_heard=38, num_frames=145))[0].notes
    assert any("cover 38 frames, the video has 145" in note for note in notes)
    assert not inspected(draft(num_heard=140, num_frames=145))[0].notes  # what follows is the tail of silence


def test_disk_is_needed_only_where_windows_are_kept(tmp_path):
    assert "disk: up to" in describe(*inspected(draft(runs=tmp_path)))
    assert "disk:" not in describe(*inspected(draft()))


MASKS = {
    "empty": ([Place(mask=torch.zeros(60, 80)), Place(mask=torch.ones(60, 80))], "mask of speaker 1 is empty. Paint"),
    "for another image": ([Place(mask=torch.ones(60, 80)), Place(mask=torch.ones(60, 30))], "speaker 2 is 30x60"),
    "the same": ([Place(mask=torch.ones(60, 80))] * 2, "Speakers 1 and 2 are in the same place: 100%"),
    "no mask at all": ([Place(mask=torch.ones(5)), Place()], r"mask of speaker 1 must be h w, got the shape \(5,\)"),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_that_name_nobody_are_told(name):
    places, message = MASKS[name]
    findings = Findings()
    check_places(places, (60, 80), (64, 64), findings)
    assert_matches(f"speakers: .*{message}", findings.problems[0])


def test_what_runs_but_perhaps_not_as_meant_is_noted(files):
    findings = Findings()
    check_voices([audio(torch.zeros(16000)), audio(torch.ones(100))], Arrangement.PARALLEL, 250, 25, findings)
    assert not findings.problems
    for text in ("Voice 1 is silent", "Voice 2 lasts 0.01 s", "voices end after 1.0 s, the video after 10.0 s"):
        assert any(text in note for note in findings.notes), text
    lora_path = files.folder / "lightx2v_rank64.safetensors"
    shutil.copy(files / "lora.safetensors", lora_path)
    few = WeightFiles(files.base, files.adapter, ((lora_path, 1.0),))
    assert any("made for few steps; 20 cost time" in note for note in inspected(draft(files=few))[0].notes)
    slow = draft(files=WeightFiles(files.base, files.adapter), config=GenerationConfig(sampling=SamplingConfig(4)))
    assert any("blurred video" in note for note in inspected(slow)[0].notes)
    single = files.folder / "infinitetalk-single.safetensors"
    shutil.copy(files.adapter, single)
    dubbed = dataclasses.replace(draft(num_source_frames=9), config=windows(recipe=Recipe.INFINITETALK))
    assert not inspected(dubbed)[0].problems
    assert any(
        "2 places, one voice: the places are not used" in note for note in inspected(draft(num_places=2))[0].notes
    )
    two = draft(files=WeightFiles(files.base, single), num_voices=2, num_places=2)
    assert "infinitetalk-single.safetensors hears one speaker, got 2. Take MultiTalk's weights." in (
        inspected(two)[0].notes
    )


def test_the_estimate_counts_windows_and_forwards_and_learns_the_time(files, tmp_path):
    parts = draft(files=WeightFiles(files.base, files.adapter), speeds=tmp_path)
    findings, found = inspected(parts)
    assert found.windows == (89, 89, 89) or sum(found.windows) >= 200
    assert found.forwards == len(found.windows) * 20 * 3 and found.seconds is None
    plain = dataclasses.replace(parts, config=dataclasses.replace(parts.config, guidance=GuidanceConfig(1.0, 1.0)))
    assert inspected(plain)[1].forwards == len(found.windows) * 20
    with measuring(parts, found, RecordingHost()):
        time.sleep(0.05)
    again = inspected(parts)[1]
    assert 0.04 < again.seconds < 2 and "about 0 s" in describe(findings, again)


def test_a_run_that_fails_or_goes_on_from_another_is_not_measured(files, tmp_path):
    parts = draft(files=WeightFiles(files.base, files.adapter), speeds=tmp_path)
    found = inspected(parts)[1]
    with measuring(parts, found, RecordingHost(), is_whole=False):
        pass
    with pytest.raises(KeyboardInterrupt), measuring(parts, found, RecordingHost()):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
