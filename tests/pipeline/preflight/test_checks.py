"""Mistakes are told all at once, in words that name the cure, before a tensor is read."""

import contextlib
import dataclasses
from pathlib import Path
from typing import NamedTuple

import pytest
from multitalk_pack.pipeline.__main__ import _files, _parser
from multitalk_pack.pipeline.errors import ConfigError, Problems
from multitalk_pack.pipeline.model_files import ModelFiles
from multitalk_pack.pipeline.weights import build
from support.command_line import check


def arguments(files, **changes):
    """A command line that runs, with some options changed; None leaves one out, a list gives it several times."""
    options = {
        "image": files.portrait, "audio": files.voice, "size": "64x64", "num-frames": 41, "base": files.base,
        "adapter": files.adapter, "vae": files.vae, "text-encoder": files.text, "image-encoder": files.image_encoder,
        "audio-encoder": files.speech, "output": files / "out" / "video.mp4", "device": "cpu",
    } | {name.replace("_", "-"): value for name, value in changes.items()}  # fmt: skip
    argv = []
    for name, value in options.items():
        for item in value if isinstance(value, list) else [value]:
            argv += [] if item is None else [f"--{name}"] if item is True else [f"--{name}={item}"]
    return argv


def problems_of(files, **changes):
    problems = Problems()
    with contextlib.suppress(ConfigError):
        check(arguments(files, **changes), problems)
    return problems


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
    "negative frames": Mistake(dict(num_frames=-5), "num_frames", "got -5", "0 is as long as the speech"),
    "endless frames": Mistake(dict(num_frames=10**9), "num_frames", "got 1000000000", "in 0..360000"),
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
    "output in a file": Mistake(dict(output=F + "text.wav/video.mp4"), "output",
        "text.wav/video.mp4 cannot be written (Not a directory)", "choose another folder"),
    "output that is no video": Mistake(dict(output=F + "video.gif"), "output", "video.gif has an ending",
        "end in .mp4, .m4v, .mov, .mkv"),
    "output on a device": Mistake(dict(output="/dev/null"), "output", "it is a device, not a file", "Name a file"),
    "output is a folder": Mistake(dict(output=F[:-1]), "output", "is a folder", "such as video.mp4"),
    "output of a long name": Mistake(dict(output="x" * 5000 + ".mp4"), "output", "xxx.mp4 cannot be written",
        "choose another folder or name"),
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
    "wide LoRA": Mistake(dict(lora=weights("wide_lora")), "lora", "skipped: shape 1536x1536 instead of 256x256",
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
    (problem,) = problems_of(files, **{option: files.fill(value) for option, value in mistake.changes.items()}).errors
    assert problem.startswith(mistake.option) and mistake.came in problem and mistake.works in problem, problem


def test_there_are_more_than_forty_mistakes():
    assert len(MISTAKES) >= 40


def test_the_counter_sees_a_run_read_its_weights(files, tensors_read):
    build.load_transformer(files.base, files.adapter)
    assert tensors_read.total() > 40


def test_what_is_right_is_not_complained_of(files, no_tensor_is_read):
    problems = problems_of(files, lora=f"{files / 'lora.safetensors'}:0.5")
    assert problems.errors == [] and problems.notes == []


PARTS = ("base", "adapter", "vae", "text-encoder", "image-encoder", "audio-encoder")


def test_without_any_weights_the_small_model_is_taken_and_told(files, no_tensor_is_read):
    problems = problems_of(files, **dict.fromkeys(PARTS))
    assert problems.errors == []
    assert any("the small bundled model is used, which knows drawn faces only" in note for note in problems.notes)


def test_a_base_with_audio_weights_needs_no_adapter(files, no_tensor_is_read):
    assert problems_of(files, base=files / "merged.safetensors", adapter=None).errors == []


def test_a_demo_takes_what_is_named_and_the_rest_from_the_small_model():
    bundled = ModelFiles.bundled()
    files = _files(_parser().parse_args(["--demo", "--vae", "mine.safetensors"]), Problems())
    assert files == dataclasses.replace(bundled, vae=Path("mine.safetensors"))
    files = _files(_parser().parse_args(["--demo", "--base", "merged.safetensors"]), Problems())
    assert files == dataclasses.replace(bundled, base=Path("merged.safetensors"), adapter=None)


def test_all_mistakes_are_told_at_once_before_a_tensor_is_read(files, no_tensor_is_read, tmp_path):
    problems, changes = Problems(), {}
    for mistake in ("steps", "width", "fps", "missing audio", "text-to-video base", "ViT-L", "wide LoRA"):
        changes |= MISTAKES[mistake].changes
    changes = {option: files.fill(value) for option, value in changes.items()}
    with pytest.raises(ConfigError, match=r"(?s)6 things keep this from running:\n1. .*steps must be.*6. "):
        check(arguments(files, **changes), problems)
