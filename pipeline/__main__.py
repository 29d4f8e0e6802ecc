"""`python -m pipeline`: a portrait, a voice and a prompt become an mp4."""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from .config import (
    CARD_NUM_FRAMES,
    Acceleration,
    GenerationConfig,
    GuidanceConfig,
    Recipe,
    Resolution,
    SamplingConfig,
    WindowConfig,
)
from .errors import MultiTalkError, Problems
from .host import Progress, RemainingTime, TorchHost
from .memory.placement import MemoryConfig, MemoryLimit
from .request import Files, Request, run

PACK = Path(__file__).parents[1]
MODELS = PACK / "demo" / "weights"
SILENT = "silent"  # instead of a file of sound
ASSETS = PACK / "demo" / "assets"
DEMO_GUIDANCE = GuidanceConfig(text_scale=1.5, audio_scale=1.5)  # more burns the small model's colours
DEMO_DEFLICKER = 3.0  # grey levels that the small VAE's walls flicker by
DEMO_FILES = Files(
    base=MODELS / "diffusion_models" / "wan2.1_i2v_480p_demo.safetensors",
    adapter=MODELS / "model_patches" / "multitalk_demo.safetensors",
    vae=MODELS / "vae" / "wan_2.1_vae_demo.safetensors",
    text_encoder=MODELS / "text_encoders" / "umt5_demo.safetensors",
    image_encoder=MODELS / "clip_vision" / "clip_vision_h_demo.safetensors",
    audio_encoder=MODELS / "audio_encoders" / "wav2vec2_demo.safetensors",
)


class TerminalHost(TorchHost):
    """Shows one line of progress: stage, window, step and remaining time."""

    def __init__(self, device: str | None):
        super().__init__(device)
        self._remaining = RemainingTime()

    def report(self, progress: Progress, latents: Tensor | None = None, frames: Tensor | None = None) -> None:
        """Rewrites the line."""
        filled = round(progress.fraction * 30)
        bar = "#" * filled + "-" * (30 - filled)
        text = progress.describe(self._remaining.left_s(progress.fraction))
        print(f"\r\033[K[{bar}] {text}", end="", file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; 0 when the video is written, 2 when the request cannot be served."""
    args = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO if args.verbose else logging.WARNING, format="%(message)s")
    problems = Problems()
    try:
        path = run(_request(args, problems), TerminalHost(args.device), problems)
    except MultiTalkError as error:
        print(f"\n{error}", file=sys.stderr)
        return 2
    print(f"\n{path}", file=sys.stderr)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipeline", description=__doc__)
    add = parser.add_argument
    add("--demo", action="store_true", help="a drawn face says a sentence, with the small bundled model")
    add("--demo-two", action="store_true", help="two drawn faces in turn, with the small bundled model")
    add("--image", type=Path, help="the portrait")
    add(
        "--audio",
        type=_voice,
        action="append",
        metavar="FILE",
        help=f"a voice; once for each speaker, in the order of their places; {SILENT} for one who keeps quiet",
    )
    add("--start", type=float, action="append", metavar="SECONDS", help="when a voice starts; once for each")
    add("--heard", type=Path, help="what the video sounds like, if not the voices: the mix they were separated from")
    add("--prompt", default="A person is talking to the camera.", help="| parts prompts for the windows")
    add("--negative-prompt", default="", help="empty takes the published one")
    add(
        "--box",
        type=_box,
        action="append",
        metavar="L,T,R,B",
        help="a speaker's place in percent of the image; once for each",
    )
    add("--num-frames", type=int, help=f"{CARD_NUM_FRAMES[0]}..{CARD_NUM_FRAMES[-1]}, 0 takes the audio's length")
    add("--long", action="store_true", help="allow any number of frames")
    add("--resolution", type=Resolution, choices=list(Resolution), default=Resolution.P480)
    add(
        "--size", type=_sides, metavar="WxH", help="width and height in pixels instead of --resolution, multiples of 16"
    )
    add("--seed", type=int, default=SamplingConfig.seed)
    add("--acceleration", type=Acceleration, choices=list(Acceleration), default=GenerationConfig.acceleration)
    add("--steps", type=int, help=f"denoising steps ({SamplingConfig.steps})")
    add("--shift", type=float, help="schedule shift; 7 at 480p, 11 at 720p")
    add("--text-scale", type=float, help=f"{GuidanceConfig.text_scale:g}; {DEMO_GUIDANCE.text_scale:g} in the demos")
    add("--audio-scale", type=float, help=f"{GuidanceConfig.audio_scale:g}; {DEMO_GUIDANCE.audio_scale:g} in the demos")
    add(
        "--deflicker",
        type=float,
        metavar="LEVELS",
        help=f"hold back changes from frame to frame of up to so many grey levels; {GenerationConfig.deflicker:g}, "
        f"{DEMO_DEFLICKER:g} in the demos",
    )
    add("--in-turn", action="store_true", help="several voices one after the other instead of together")
    add("--recipe", type=Recipe, choices=list(Recipe), help="how the adapter was trained; the default goes by its name")
    add("--memory", type=MemoryLimit, choices=list(MemoryLimit), default=MemoryLimit.AUTO)
    add("--device", type=_device, help="cpu, cuda, cuda:1 ...")
    add("--fps", type=_rate, default=25.0, help="frames a second of the video, such as 24 or 30000/1001")
    for part in ("base", "adapter", "vae", "text-encoder", "image-encoder", "audio-encoder"):
        add(f"--{part}", type=Path, help="weights file; the small bundled model where no part is named")
    add("--lora", action="append", default=[], metavar="FILE[:STRENGTH]", help="once for each")
    add("--resume-folder", type=Path, help="keep finished windows here, up to 50 GB, and go on from them")
    add("--restart", action="store_true", help="make every window again, whatever --resume-folder holds")
    add("--output", type=Path, default=Path("output/multitalk.mp4"))
    add("--verbose", action="store_true")
    return parser


def _sides(text: str) -> tuple[int, int]:
    """(height, width) of WxH."""
    try:
        width, height = (int(side) for side in text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"it is width x height, such as 832x480, got {text}") from None
    return height, width


def _box(text: str) -> tuple[float, float, float, float]:
    """The edges of L,T,R,B."""
    try:
        left, top, right, bottom = (float(edge) for edge in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"it is left,top,right,bottom, such as 0,0,50,100, got {text}") from None
    return left, top, right, bottom


def _voice(text: str) -> Path | None:
    """The file of a voice; None for a speaker who keeps quiet."""
    return None if text == SILENT else Path(text)


def _rate(text: str) -> float:
    """Frames a second, from a number or a fraction."""
    try:
        return float(Fraction(text))
    except (ValueError, ArithmeticError):
        raise argparse.ArgumentTypeError(f"it is a number such as 24 or 30000/1001, got {text}") from None


def _device(text: str) -> str:
    """A device that torch knows and this machine has."""
    try:
        torch.zeros(1, device=text).item()
    except (RuntimeError, AssertionError) as error:  # torch's ways to say that there is none
        raise argparse.ArgumentTypeError(f"{text} cannot be used here; cpu always can.") from error
    return text


def _request(args: argparse.Namespace, problems: Problems) -> Request:
    """The request that the arguments describe; the demos fill in what is not given.

    What is wrong with an option goes to `problems`, and its default takes its place.
    """
    demo = args.demo or args.demo_two
    if args.demo_two:
        image, audio = ASSETS / "drawn_two.png", [ASSETS / "drawn_speech.wav", ASSETS / "drawn_answer.wav"]
    else:
        image, audio = ASSETS / "drawn_portrait.png", [ASSETS / "drawn_speech.wav"]
    windows = WindowConfig() if args.recipe is None else WindowConfig(recipe=args.recipe)
    num_frames = args.num_frames if args.num_frames is not None else (0 if demo else GenerationConfig.num_frames)
    size = args.size or (((128, 192) if args.demo_two else (128, 128)) if demo else None)
    steps = args.steps if args.steps is not None else (20 if demo else SamplingConfig.steps)
    sampling = problems.attempt("", SamplingConfig, steps, args.shift, args.seed) or SamplingConfig()
    usual = DEMO_GUIDANCE if demo else GuidanceConfig()
    text_scale = usual.text_scale if args.text_scale is None else args.text_scale
    audio_scale = usual.audio_scale if args.audio_scale is None else args.audio_scale
    guidance = problems.attempt("", GuidanceConfig, text_scale, audio_scale) or usual
    deflicker = args.deflicker
    if deflicker is None:
        deflicker = DEMO_DEFLICKER if demo else GenerationConfig.deflicker
    config = partial(
        GenerationConfig,
        resolution=args.resolution,
        acceleration=args.acceleration,
        sampling=sampling,
        guidance=guidance,
        windows=windows,
    )
    return Request(
        image=args.image or (image if demo else None),
        audio=tuple(args.audio or (audio if demo else ())),
        prompt=args.prompt,
        negative_prompt=args.negative_prompt,
        boxes=tuple(args.box or ()),
        size=size,
        in_turn=args.in_turn or args.demo_two,
        fps=args.fps,
        files=_files(args, demo, problems),
        recipe=args.recipe,
        memory=MemoryConfig(args.memory),
        config=problems.attempt(
            "", partial(config, num_frames, allow_long=args.long or num_frames == 0, deflicker=deflicker)
        )
        or config(),
        resume_folder=args.resume_folder,
        starts=tuple(args.start or ()),
        heard=args.heard,
        restart=args.restart,
        output=args.output,
    )


def _files(args: argparse.Namespace, demo: bool, problems: Problems) -> Files:
    """The weights that are named; the small bundled ones where none is, and for what a demo leaves open."""
    files = Files(**{name: getattr(args, name) for name in Files.names()}, loras=tuple(args.lora))
    if not demo:
        if any(getattr(files, name) for name in Files.names()):
            return files
        problems.note("No weights are named, so the small bundled model is used, which knows drawn faces only.")
    bundled = DEMO_FILES if files.base is None else replace(DEMO_FILES, adapter=None)  # a base may have audio weights
    return replace(files, **{name: getattr(files, name) or getattr(bundled, name) for name in Files.names()})


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    sys.exit(main())
