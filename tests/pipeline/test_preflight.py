"""Mistakes are told all at once, in words that name the cure, before a tensor is read."""

import dataclasses
import pickle
import shutil
import time
import wave
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from multitalk.pipeline.__main__ import _parser, _request
from multitalk.pipeline.acceleration.accelerate import AccelerationOptions, CacheKind
from multitalk.pipeline.audio.dialogue import Arrangement, Speech
from multitalk.pipeline.audio.waveform import Sound
from multitalk.pipeline.conditioning.speakers import Place
from multitalk.pipeline.config import GenerationConfig, GuidanceConfig, SamplingConfig, WindowConfig, WindowPlan
from multitalk.pipeline.errors import ConfigError, MultiTalkError
from multitalk.pipeline.findings import Findings
from multitalk.pipeline.memory import GB, Memory, MemoryConfig
from multitalk.pipeline.preflight import Draft, check_places, check_voices, describe, inspect, measuring
from multitalk.pipeline.request import look, run
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
        (self.folder / "pointer.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
        (self.folder / "page.safetensors").write_text("<!DOCTYPE html><html>Not found</html>")
        (self.folder / "empty.safetensors").write_bytes(b"")
        (self.folder / "half.safetensors").write_bytes(self.base.read_bytes()[:-1000])
        (self.folder / "code.pth").write_bytes(pickle.dumps(Code(), 2))

    def save(self, name, state):
        save_file({key: value.contiguous() for key, value in state.items()}, self.folder / f"{name}.safetensors")

    def __truediv__(self, name):
        return self.folder / name


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
def no_tensor_is_read(monkeypatch):
    """Whatever would read weights fails."""
    for kind in (source.MappedFile, source.Loaded, source.Together):
        monkeypatch.setattr(kind, "get", lambda *_: pytest.fail("a tensor was read"))
    for name in ("load_transformer", "load_vae", "load_text_encoder", "load_image_encoder", "load_audio_encoder"):
        monkeypatch.setattr(build, name, lambda *_, **__: pytest.fail("weights were loaded"))


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


F = "{0}/"  # the folder of the files
OPTIONS = {
    "steps": (dict(steps=0), "steps must be at least 1, got 0. 40 is"),
    "shift": (dict(shift=-1), "shift must be above 0 and at most 100, got -1.0. 7 suits 480p"),
    "seed": (dict(seed=-1), r"seed must be in 0..2\^64-1, got -1"),
    "text scale": (dict(text_scale=200), "text_scale must be in 0..100, got 200.0. 1 turns it off"),
    "audio scale": (dict(audio_scale="nan"), "audio_scale must be in 0..100, got nan. 1 turns it off"),
    "frames below the card's": (dict(num_frames=40), r"num_frames must be in 41..241, got 40. Turn on long video"),
    "frames above the card's": (dict(num_frames=242), r"num_frames must be in 41..241, got 242"),
    "negative frames": (dict(num_frames=-5), "num_frames must not be negative, got -5. 0 takes"),
    "width": (dict(size="65x64"), "size: width must be a multiple of 16, got 65. The nearest is 64"),
    "height": (dict(size="64x0"), "size: height must be a multiple of 16, got 0. The nearest is 16"),
    "fps": (dict(fps=0), r"fps: It must be in 1..120, got 0. 25 is"),
    "few steps with guidance": (dict(acceleration="high", steps=4),
                                r"acceleration: High acceleration with 4 steps.*text_scale of 5. Set text_scale to 1"),
    "no image": (dict(image=None), "image: There is none. Name a portrait with --image"),
    "missing image": (dict(image=F + "no.png"), "image: There is no file .*no.png"),
    "no picture": (dict(image=F + "text.png"), "image: .*text.png is not an image.*Use PNG"),
    "tiny picture": (dict(image=F + "speck.png"), "image: The image is 8x8 pixels. Both sides must be at least 16"),
    "no audio": (dict(audio=None), "audio: There is none. Name a voice with --audio"),
    "missing audio": (dict(audio=F + "no.wav"), "audio: There is no file .*no.wav"),
    "no sound": (dict(audio=F + "text.wav"), "audio: text.wav cannot be read as audio.*WAV or MP3"),
    "picture as audio": (dict(audio=F + "portrait.png"), "audio: portrait.png holds no audio. Choose a file"),
    "empty sound": (dict(audio=F + "empty.wav"), "audio: empty.wav holds an audio track without a single sample"),
    "boxes for fewer voices": (dict(audio=[F + "voice.wav"] * 2, box="0,0,50,100"),
                               "box: 2 voices need as many boxes, got 1"),
    "box the wrong way round": (dict(audio=[F + "voice.wav"] * 2, box=["60,0,10,100", "50,0,100,100"]),
                                r"box: A box is left, top, right, bottom with left < right.*got \(60.0, 0.0"),
    "box outside": (dict(audio=[F + "voice.wav"] * 2, box=["0,0,50,100", "110,0,150,100"]),
                    r"speakers: The box of speaker 2.*\(110.0.*holds no pixel of the image \(120x90\)"),
    "box cut off by the crop": (dict(audio=[F + "voice.wav"] * 2, box=["0,0,5,100", "50,0,100,100"]),
                                "speakers: Speaker 1 is cut off.*outside the centre that fits 64x64. Crop the image"),
    "box too small": (dict(audio=[F + "voice.wav"] * 2, box=["48,50,49,52", "50,0,100,100"]),
                      "speakers: The place of speaker 1 is too small.*at least 32x32 pixels"),
    "boxes in one place": (dict(audio=[F + "voice.wav"] * 2, box=["20,0,80,100", "21,0,79,100"]),
                           "speakers: Speakers 1 and 2 are in the same place: 100% of the smaller.*each person alone"),
    "output in a file": (dict(output=F + "text.wav/video.mp4"), "output: .*text.wav is a file, not a folder. Choose"),
    "output is a folder": (dict(output=F[:-1]), "output: .* is a folder. Name a file in it, such as video.mp4"),
    "resume folder in a file": (dict(resume_folder=F + "text.wav"), "resume: .*text.wav is a file, not a folder"),
    "no number as strength": (dict(lora=F + "lora.safetensors:strong"),
                              "lora: The strength of .*lora.safetensors must be a number such as 0.8, got strong"),
}  # fmt: skip
WEIGHTS = {
    "missing base": (dict(base=F + "no.safetensors"), "base: .*no.safetensors does not exist"),
    "text-to-video base": (dict(base=F + "t2v.safetensors"), r"base: t2v.safetensors is a Wan2.1 text-to-video model"),
    "1.3B base": (dict(base=F + "small.safetensors"), "base: small.safetensors is a Wan 1.3B model.*14B"),
    "incomplete base": (dict(base=F + "cut.safetensors"), "cut.safetensors and .* lack 2 of .*download a complete"),
    "half a base": (dict(base=F + "half.safetensors"), "base: half.safetensors is incomplete.*download it again"),
    "adapter as base": (dict(base=F + "multitalk_tiny.safetensors"), "base: multitalk_tiny.safetensors contains"),
    "vae as base": (dict(base=F + "wan_2.1_vae_tiny.safetensors"), "base: wan_2.1_vae_tiny.safetensors is Wan2.1's"),
    "pointer": (dict(base=F + "pointer.safetensors"), "base: pointer.safetensors is a Git-LFS pointer"),
    "web page": (dict(base=F + "page.safetensors"), "base: page.safetensors is a web page"),
    "empty file": (dict(base=F + "empty.safetensors"), "base: empty.safetensors is empty"),
    "code": (dict(base=F + "code.pth"), "base: code.pth needs to run code to open; convert it to safetensors"),
    "base as adapter": (dict(adapter=F + "wan2.1_i2v_480p_tiny.safetensors"),
                        "adapter: wan2.1_i2v_480p_tiny.safetensors is a whole Wan2.1 model without audio weights"),
    "adapter to a merged base": (dict(base=F + "merged.safetensors"), "already contains the audio weights; leave"),
    "adapter of another size": (dict(adapter=F + "narrow_adapter.safetensors"),
                                "adapter: narrow_adapter.safetensors has 2 blocks of width 128, .* has 2 of width 256"),
    "vae of Wan2.2": (dict(vae=F + "vae48.safetensors"), "vae: vae48.safetensors is the 48-channel Wan2.2 VAE"),
    "text encoder as vae": (dict(vae=F + "umt5_tiny.safetensors"), "vae: umt5_tiny.safetensors is umT5's encoder"),
    "T5 of Flux": (dict(text_encoder=F + "t5.safetensors"), "text_encoder: t5.safetensors is a T5 .*as Flux and SD3"),
    "narrow text encoder": (dict(text_encoder=F + "narrow_text.safetensors"),
                            "text_encoder: narrow_text.safetensors gives tokens of width 32, the model wants 64"),
    "no tokenizer": (dict(text_encoder=F + "alone/t.safetensors"), "text_encoder: t.safetensors has no tokenizer"),
    "ViT-L": (dict(image_encoder=F + "vit_l.safetensors"), "image_encoder: vit_l.safetensors is a ViT-L/14"),
    "narrow image encoder": (dict(image_encoder=F + "narrow_image.safetensors"),
                             "image_encoder: narrow_image.safetensors gives tokens of width 80, the model wants 160"),
    "English speech": (dict(audio_encoder=F + "english.safetensors"), "audio_encoder: english.safetensors is a wav"),
    "large speech": (dict(audio_encoder=F + "large_speech.safetensors"), "audio_encoder: .* is a large wav2vec2"),
    "whisper": (dict(audio_encoder=F + "whisper.safetensors"), "audio_encoder: whisper.safetensors is a Whisper model"),
    "narrow speech": (dict(audio_encoder=F + "narrow_speech.safetensors"),
                      "audio_encoder: narrow_speech.safetensors has 2 layers of 64, the audio weights want 2 of 128"),
    "missing LoRA": (dict(lora=F + "no_lora.safetensors"), "lora: .*no_lora.safetensors does not exist"),
    "adapter as LoRA": (dict(lora=F + "multitalk_tiny.safetensors"), "lora: multitalk_tiny.safetensors is MultiTalk's"),
    "Flux LoRA": (dict(lora=F + "flux_lora.safetensors"), "lora: LoRA flux_lora.safetensors fits no layer.*made for"),
    "wide LoRA": (dict(lora=F + "wide_lora.safetensors"), "lora: .*q is 1536 wide in it and 256 in the model"),
    "pose LoRA": (dict(lora=F + "pose_lora.safetensors"), "lora: pose_lora.safetensors is a UniAnimate pose LoRA"),
}  # fmt: skip
MISTAKES = OPTIONS | WEIGHTS


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_with_its_cure_before_a_tensor_is_read(name, files, no_tensor_is_read):
    changes, message = MISTAKES[name]
    fill = lambda value: value.format(files.folder) if isinstance(value, str) else value  # noqa: E731 - for lists too
    changes = {key: list(map(fill, v)) if isinstance(v, list) else fill(v) for key, v in changes.items()}
    found = problems_of(files, **changes).problems
    assert len(found) == 1, found
    assert_matches(message, found[0])


def assert_matches(message, text):
    with pytest.raises(MultiTalkError, match=message):
        raise MultiTalkError(text)


def test_there_are_more_than_forty_mistakes():
    assert len(MISTAKES) >= 40


def test_what_is_right_is_not_complained_of(files, no_tensor_is_read):
    findings = problems_of(files, lora=f"{files / 'lora.safetensors'}:0.5")
    assert findings.problems == [] and findings.notes == []


def test_all_mistakes_are_told_at_once_within_two_seconds(files, no_tensor_is_read, tmp_path):
    findings, changes = Findings(), {}
    for mistake in ("steps", "width", "fps", "missing audio", "text-to-video base", "ViT-L", "wide LoRA"):
        changes |= MISTAKES[mistake][0]
    changes = {key: value.format(files.folder) if isinstance(value, str) else value for key, value in changes.items()}
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
    "magnitudes of other steps": (
        lambda: draft(options=AccelerationOptions(CacheKind.MAG, magnitudes=(1.0, 0.9))),
        "acceleration: MagCache has 2 magnitudes for 20 steps"),
    "voices without places": (
        lambda: draft(num_voices=3, num_places=1), "speakers: 3 voices need as many places in the picture, got 1"),
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


def test_disk_and_kept_frames_that_do_not_fit_are_told(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**6))
    findings, _ = inspected(draft(runs=tmp_path / "new" / "runs"))
    assert_matches(r"resume: Finished windows need up to 0.00 GB in .* turn resuming off", findings.problems[0])
    monkeypatch.undo()
    findings, _ = inspected(draft(keeps_frames=True, num_frames=90000, target=(960, 960)))
    assert_matches(
        "keep_frames: 90000 frames take .* Turn keep_frames off and take the video output", findings.problems[0]
    )


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
