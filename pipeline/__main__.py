"""`python -m pipeline`: a portrait, a voice and a prompt become an mp4."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import torch

from .choice import Choice
from .config import (
    Acceleration,
    AudioFeatures,
    ColorMatch,
    Fp8Products,
    GenerationConfig,
    Recipe,
    Resolution,
    SamplerKind,
)
from .errors import ConfigError, MultiTalkError, Problems
from .host import Host, Preview, Progress, RemainingTime, TorchHost
from .memory.placement import MemoryLimit
from .model_files import ModelFiles, parse_lora
from .multitalk_pipeline import LEDGER_FOLDER, MultiTalkPipeline
from .parallel.split import Split
from .remote.endpoints import ENDPOINTS
from .request import Request
from .weights.handles import Precision

# As it was called: by the name that an installation gives it, or as a module.
PROGRAM = "multitalk" if Path(sys.argv[0]).stem == "multitalk" else "python -m pipeline"
SILENT = "silent"  # instead of a file of sound
ASSETS = Path(__file__).parents[1] / "demo" / "assets"
PROMPT = "A person is talking to the camera."
INTERRUPTED = 130  # what shells expect after Ctrl-C
INVALID_INPUT = 2


class TerminalHost(TorchHost):
    """A host that shows one line of progress: stage, window, step and remaining time."""

    def __init__(self, device: str | None):
        super().__init__(device)
        self._remaining = RemainingTime()

    def report(self, progress: Progress, preview: Preview | None = None) -> None:
        """Rewrites the line."""
        show_progress(progress.fraction, progress.describe(self._remaining.left_s(progress.fraction)))


def show_progress(fraction: float, text: str) -> None:
    """Rewrites the terminal's line: a bar, `fraction` (0..1) of it full, and `text`."""
    filled = round(fraction * 30)
    bar = "#" * filled + "-" * (30 - filled)
    print(f"\r\033[K[{bar}] {text}", end="", file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; 0 when the video is written, 2 when the request cannot be served."""
    args = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO if args.verbose else logging.WARNING, format="%(message)s")
    problems = Problems()
    try:
        host = TerminalHost(args.device or next(iter(args.devices), None))
        with closing(make_pipeline(args, host, problems)) as talk:
            path = talk.render(
                args.output, *_media(args), args.prompt, resume_folder=args.resume_folder, restart=args.restart,
                remote=args.remote, ledger_folder=args.ledger_folder, problems=problems, **_options(args),
            )  # fmt: skip
    except MultiTalkError as error:
        print(f"\n{error}", file=sys.stderr)
        return INVALID_INPUT
    except KeyboardInterrupt:
        print(f"\nStopped. {_after_a_stop(args)}", file=sys.stderr)
        return INTERRUPTED
    print(f"\n{path}", file=sys.stderr)
    return 0


def _after_a_stop(args: argparse.Namespace) -> str:
    """What becomes of a run that was interrupted."""
    if args.remote:
        return "What was bought is written down: the same command goes on from it, and buys nothing twice."
    if args.resume_folder:
        return "Finished windows are kept, the same command goes on from them."
    return "No window is kept to go on from; --resume-folder keeps them."


def parse_options(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of a request that was not typed at a terminal.

    Raises:
        ConfigError: a value is none that its option takes.
    """
    try:
        return _parser(exit_on_error=False).parse_args(arguments)
    except argparse.ArgumentError as error:
        raise ConfigError(str(error)) from None


def make_pipeline(args: argparse.Namespace, host: Host, problems: Problems) -> MultiTalkPipeline:
    """The pipeline that the options name."""
    precision = {"precision": args.precision, "vae_precision": args.vae_precision}
    devices = {"devices": args.devices, "split": args.split}
    return MultiTalkPipeline.of(_files(args, problems), memory=args.memory, **precision, **devices, host=host)


def make_request(args: argparse.Namespace, problems: Problems) -> Request:
    """The request that the options describe."""
    return Request.of(*_media(args), args.prompt, problems=problems, **_options(args))


@cache
def _parser(exit_on_error: bool = True) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=PROGRAM, description=__doc__, exit_on_error=exit_on_error)
    _add_media(parser.add_argument_group("picture, voices, prompt"))
    _add_video(parser.add_argument_group("video"))
    _add_sampling(parser.add_argument_group("sampling (what is left out is the model's own)"))
    _add_weights(parser.add_argument_group("weights (the small bundled model where no file is named)"))
    _add_machine(parser.add_argument_group("machine"))
    return parser


def _add_media(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--demo", action="store_true", help="a drawn face says a sentence, with the small bundled model")
    add("--demo-two", action="store_true", help="two drawn faces in turn, with the small bundled model")
    add("--image", type=Path, help="the portrait, or a video to dub (InfiniteTalk)")
    add(
        "--audio",
        type=_voice,
        action="append",
        metavar="FILE",
        help=f"a voice; once for each speaker, in the order of their places; {SILENT} for one who keeps quiet",
    )
    add("--start", type=float, action="append", metavar="SECONDS", help="when a voice starts; once for each")
    add("--in-turn", action="store_true", help="several voices one after the other instead of together")
    add(
        "--box", type=_box, action="append", metavar="L,T,R,B",
        help="a speaker's place in percent of the image; once for each",
    )  # fmt: skip
    add("--soundtrack", type=Path, help="the video's sound, if not the voices: the mix they were separated from")
    add("--prompt", default=PROMPT, help="for a long video one for each window, parted by |")
    add("--negative-prompt", default="", help="empty takes the published one")


def _add_video(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--output", type=Path, default=Path("output/multitalk.mp4"), help="the video, replaced where it exists")
    add("--num-frames", type=int, default=0, help="25 a second; 0, the default, is as long as the speech")
    add("--fps", type=_rate, default=GenerationConfig.fps, help="frames a second of the file, such as 24 or 30000/1001")
    add("--resolution", choices=_words(Resolution), default=GenerationConfig.resolution.value)
    add("--size", type=_sides, metavar="WxH", help="width and height in pixels, multiples of 16, not --resolution")
    add("--deflicker", type=float, metavar="LEVELS", help="hold back changes of up to so many grey levels")
    add("--color-strength", type=float, metavar="0..1", help="how far colours are moved to the picture's")
    add("--color-match", choices=_words(ColorMatch), help="steady: two seconds of frames; frame: each, as published")
    add("--resume-folder", type=Path, help="keep finished windows here, up to 50 GB, and go on from them")
    add(
        "--restart",
        action="store_true",
        help="make every window again, whatever --resume-folder holds; at fal, buy it again",
    )
    add("--first-look", action="store_true", help="the first 41 frames only, to judge a long run by")


def _add_sampling(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--seed", type=int, default=GenerationConfig.seed)
    add("--acceleration", choices=_words(Acceleration), default=GenerationConfig.acceleration.value)
    add(
        "--fp8-products", choices=_words(Fp8Products), default=GenerationConfig.fp8_products.value,
        help="multiply float8 weights as they are stored, on cards from the RTX 40 series on: faster, with activations "
        "rounded to float8; auto: in regular and high",
    )  # fmt: skip
    add("--steps", type=int, help="denoising steps: 40 as published, 4 with FlashTalk or a few-step LoRA")
    add("--shift", type=float, help="schedule shift: 7 at 480p, 11 at 720p, 5 with FlashTalk")
    add("--sampler", choices=_words(SamplerKind), help="euler; renoise for what was distilled to it, as FlashTalk")
    add("--text-scale", type=float, help="guidance towards the prompt; 1 turns it off")
    add("--audio-scale", type=float, help="guidance towards the audio; 1 turns it off")
    add(
        "--features", choices=_words(AudioFeatures), default=GenerationConfig.features.value,
        help="speech features of the whole sound, or of the last 8 s for each window, as in FlashTalk's live mode",
    )  # fmt: skip
    add("--window-frames", type=int, help="frames that are sampled together, 4n+1")
    add("--motion-frames", type=int, help="frames that a window hands on to the next, 4n+1")


def _add_weights(group: argparse._ArgumentGroup) -> None:
    for name in ModelFiles.names():
        group.add_argument(f"--{name.replace('_', '-')}", type=Path, metavar="FILE")
    group.add_argument("--lora", action="append", default=[], metavar="FILE[:STRENGTH]", help="once for each")
    group.add_argument(
        "--recipe",
        choices=_words(Recipe),
        help="the model of the audio weights, if not as their file, or folder, is called",
    )


def _add_machine(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--remote", choices=list(ENDPOINTS), help="have fal make it, for money; the key is in FAL_KEY")
    add(
        "--ledger-folder", type=Path, default=LEDGER_FOLDER, metavar="FOLDER",
        help="where it is written down what was bought from fal; a ComfyUI's is user/__multitalk",
    )  # fmt: skip
    add("--device", type=_device, help="cpu, cuda, cuda:1 ...")
    add("--devices", type=_devices, default=(), metavar="DEVICE,...", help="several that share a clip: cuda:0,cuda:1")
    add("--split", choices=_words(Split), default=Split.AUTO.value, help="what each of several devices takes")
    add("--memory", choices=_words(MemoryLimit), default=MemoryLimit.AUTO.value)
    add("--precision", choices=_words(Precision), default=Precision.AUTO.value)
    add("--vae-precision", choices=_words(Precision), default=Precision.AUTO.value)
    add("--verbose", action="store_true")


def _words(choice: type[Choice]) -> list[str]:
    return [member.value for member in choice]


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


def _devices(text: str) -> tuple[str, ...]:
    """Devices that this machine has, separated by commas."""
    return tuple(map(_device, text.split(",")))


def _media(args: argparse.Namespace) -> tuple[Path | None, Sequence[Path | None]]:
    """The picture and the voices; the demos fill in what is not given."""
    if args.demo_two:
        return args.image or ASSETS / "drawn_two.png", args.audio or [
            ASSETS / "drawn_speech.wav", ASSETS / "drawn_answer.wav",
        ]  # fmt: skip
    if args.demo:
        return args.image or ASSETS / "drawn_portrait.png", args.audio or [ASSETS / "drawn_speech.wav"]
    return args.image, args.audio or []


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """The other arguments of `Request.of`, by their names."""
    names = (
        "soundtrack", "negative_prompt", "num_frames", "fps", "resolution", "size", "seed", "acceleration",
        "fp8_products", "steps", "shift", "sampler", "text_scale", "audio_scale", "features", "window_frames",
        "motion_frames", "color_strength", "color_match", "deflicker", "first_look",
    )  # fmt: skip
    options = {name: getattr(args, name) for name in names}
    return options | {"start": args.start or (), "box": args.box or (), "in_turn": args.in_turn or args.demo_two}


def _files(args: argparse.Namespace, problems: Problems) -> ModelFiles:
    """The weights by name; the small bundled ones where none is named, and for what a demo leaves open."""
    paths = {name: getattr(args, name) for name in ModelFiles.names()}
    loras = [problems.attempt("lora", parse_lora, lora) for lora in args.lora]
    files = ModelFiles.of(loras=[lora for lora in loras if lora is not None], recipe=args.recipe, **paths)
    if not args.demo and not args.demo_two:
        if any(paths.values()) or args.remote:
            return files
        problems.note("No weights are named, so the small bundled model is used, which knows drawn faces only.")
    bundled = ModelFiles.bundled()
    if files.base is not None:
        bundled = replace(bundled, adapter=None)  # a base may have audio weights
    return replace(files, **{name: paths[name] or getattr(bundled, name) for name in paths})


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    sys.exit(main())
