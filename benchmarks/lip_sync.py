"""What the bundled model can do, on faces and speech that it never saw: `python -m benchmarks.lip_sync`.

Prints a table for each part. The measures look at frames and sounds alone (`demo.lip_sync`), or compare the frames
with drawings of the same face; none asks the model.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from demo import prompts
from demo.faces import Motion, draw, head_position
from demo.lip_sync import implied_mouth, measure, mouth_openings
from demo.scenes import HEIGHT, Scene, random_scene
from pipeline.acceleration.presets import AccelerationOptions
from pipeline.audio.dialogue import Arrangement, Speech
from pipeline.audio.embeds import encode_audio
from pipeline.audio.waveform import SAMPLE_RATE_HZ, Sound
from pipeline.conditioning.conditioning import Conditioning
from pipeline.conditioning.speakers import Place, speaker_masks
from pipeline.config import Acceleration, GenerationConfig, Recipe
from pipeline.generate import generate
from pipeline.generation.recipes import RECIPES
from pipeline.generation.run_spec import make_run_spec
from pipeline.generation.windows import WindowConfig, plan_windows
from pipeline.host import Host, TorchHost
from pipeline.models.text_encoder import DEFAULT_NEGATIVE_PROMPT
from pipeline.weights import build
from pipeline.weights.handles import Precision

from .machine import facts
from .report import Row, Table, machine_line, markdown_of, save

MODELS_FOLDER = Path(__file__).resolve().parents[1] / "demo" / "weights"
SETTLED = 15  # frames after which a face looks as it was asked to
HELD_OUT_SEED = 7_000_000  # of scenes; the training draws from other streams
Frames = NDArray[np.uint8]


class Studio:
    """The bundled model, loaded once."""

    def __init__(self, folder: Path, steps: int, text_scale: float, audio_scale: float) -> None:
        self.transformer = build.load_transformer(
            folder / "diffusion_models/wan2.1_i2v_480p_demo.safetensors",
            folder / "model_patches/multitalk_demo.safetensors",
            dtype=Precision.AUTO.on(torch.device("cpu")),
        )
        self.vae = build.load_vae(folder / "vae/wan_2.1_vae_demo.safetensors")
        self.text = build.load_text_encoder(folder / "text_encoders/umt5_demo.safetensors", dtype=torch.float32)
        self.image = build.load_image_encoder(folder / "clip_vision/clip_vision_h_demo.safetensors", torch.float32)
        self.listener = build.load_audio_encoder(folder / "audio_encoders/wav2vec2_demo.safetensors")
        self.config = GenerationConfig(steps=steps, text_scale=text_scale, audio_scale=audio_scale)

    @torch.inference_mode()
    def talk(
        self, scene: Scene, num_frames: int, swapped: bool = False,
        acceleration: Acceleration | AccelerationOptions = Acceleration.NONE, host: Host | None = None,
        **guidance: float | bool,
    ) -> Frames:  # fmt: skip
        """`f h w 3`: the scene's first drawing says what its people say.

        Args:
            swapped: each person's voice is given the other person's place.
            acceleration: a preset or single knobs.
            host: who is told; None tells nobody.
            guidance: other than the studio's.
        """
        portrait = _signal(scene.frames()[:1])
        sounds = [Speech(Sound(torch.from_numpy(sound)[None], SAMPLE_RATE_HZ)) for sound in scene.sounds]
        size = (HEIGHT, scene.width)
        masks = speaker_masks([Place()] * len(sounds), size, size) if len(sounds) > 1 else None
        if swapped:
            masks = masks[[1, 0, 2]]
        prompt = prompts.prompt(np.random.default_rng(0), scene.smile, scene.brows, len(sounds))
        conditioning = Conditioning(
            portrait, (self.text.encode(prompt),), self.text.encode(DEFAULT_NEGATIVE_PROMPT), self.vae, self.image,
            speaker_masks=masks,
        )  # fmt: skip
        embeds = encode_audio(self.listener, sounds, Arrangement.PARALLEL, num_frames)
        is_preset = isinstance(acceleration, Acceleration)
        config = replace(self.config, acceleration=acceleration if is_preset else Acceleration.NONE, **guidance)
        spec = make_run_spec(
            config, Recipe.BUNDLED, size, embeds.num_frames, len(sounds),
            acceleration=None if is_preset else acceleration,
        )  # fmt: skip
        windows = list(generate(self.transformer, embeds, conditioning, spec, host or TorchHost("cpu")))
        video = torch.cat(windows, dim=1).permute(1, 2, 3, 0)
        return ((video + 1) * 127.5).round().clamp(0, 255).byte().numpy()


@dataclass(frozen=True)
class Line:
    """A line of the table."""

    name: str
    value: float
    wanted: str
    holds: bool

    @property
    def row(self) -> Row:
        """Of a `report.Table`."""
        return {"what": self.name, "reached": self.value, "wanted": self.wanted, "holds": "yes" if self.holds else "no"}


def lips(studio: Studio, count: int, num_frames: int) -> Iterator[Line]:
    """One person: how the lips follow the own audio and another one, and whether the face stays as it was."""
    scenes = [held_out(number, num_frames, 1) for number in range(count)]
    started = time.monotonic()
    videos = [studio.talk(scene, num_frames) for scene in scenes]
    seconds = (time.monotonic() - started) / count
    openings = [mouth_openings(video)[0] for video in videos]
    implied = [implied_mouth(scene.sounds[0]).opening for scene in scenes]
    own = [measure(a, b) for a, b in zip(openings, implied, strict=True)]
    foreign = [abs(measure(a, b).without_lag) for a, b in zip(openings, implied[1:] + implied[:1], strict=True)]
    yield _at_least("correlation with the own audio, mean", np.mean([sync.correlation for sync in own]), 0.8)
    yield _at_most("lag in frames, largest", max(abs(sync.lag) for sync in own), 1)
    yield _at_most("correlation with another audio, mean of its size", np.mean(foreign), 0.3)
    yield _at_least("PSNR to the portrait outside the mouth, dB, mean", np.mean([*map(still_psnr, scenes, videos)]), 24)
    looks = [dB for s, v in zip(scenes, videos, strict=True) for dB in eyes_psnr(s, v[SETTLED:])]
    yield _at_least("PSNR of eyes and brows to drawings, dB, lowest", min(looks), 24)
    ratio = np.mean([flicker(s, v) / flicker(s, s.frames()) for s, v in zip(scenes, videos, strict=True)])
    yield _at_most("flicker, times that of the drawn clips", ratio, 1)
    yield _at_most(f"seconds for {num_frames} frames", seconds, 60)


def scales(studio: Studio, count: int, num_frames: int) -> Iterator[Line]:
    """Audio guidance: more of it must not loosen the lips by more than chance.

    That is the standard error over people, and 0.01 at most.
    """
    scenes = [held_out(number, num_frames, 1) for number in range(count)]
    best = None
    for scale, projected in ((1.0, False), (2.0, False), (4.0, False), (4.0, True)):
        videos = [studio.talk(scene, num_frames, audio_scale=scale, projected=projected) for scene in scenes]
        found = np.array([*map(_sync, videos, scenes)])
        name = f"correlation at audio scale {scale:g}" + (", projected guidance" if projected else "")
        if best is None:
            best = found
        chance = min(((found - best).var() / max(count - 1, 1)) ** 0.5, 0.01)
        yield _at_least(name, found.mean(), best.mean() - chance)
        best = max(best, found, key=np.mean)


def long(studio: Studio, count: int, num_frames: int) -> Iterator[Line]:
    """Several windows: the lips, how still the last second is, and what is seen where two windows meet."""
    scenes = [held_out(500 + number, num_frames, 1) for number in range(count)]
    videos = [studio.talk(scene, num_frames) for scene in scenes]
    yield _at_least("correlation, mean", np.mean([*map(_sync, videos, scenes)]), 0.8)
    last = [still_psnr(scene, video[-25:]) for scene, video in zip(scenes, videos, strict=True)]
    yield _at_least("PSNR outside the mouth in the last second, dB, mean", np.mean(last), 24)
    plan = plan_windows(num_frames, WindowConfig(), [num_frames])
    seams = [window.start + window.overlap - 1 for window in plan[1:]]
    jumps = []
    for video in videos:
        steps = np.abs(np.diff(video.astype(np.float64), axis=0)).mean(axis=(1, 2, 3))
        jumps.append(steps[seams].max() / np.median(steps))
    yield _at_most("frame difference at a seam, times the median, largest", max(jumps), 1.5)


def turns(studio: Studio, count: int, num_frames: int) -> Iterator[Line]:
    """Two people in several windows: the lips of both, and how they look in the last second."""
    found, looks = [], []
    for number in range(count):
        scene = held_out(700 + number, num_frames, 2)
        scene = replace(scene, sounds=_in_turn(_both_speak(scene, 50 + number)))
        video = studio.talk(scene, num_frames)
        openings = mouth_openings(video, 2)
        found += [measure(a, implied_mouth(b).opening) for a, b in zip(openings, scene.sounds, strict=True)]
        looks += eyes_psnr(scene, video[-25:])
    yield _at_least("correlation of each one, mean", np.mean([sync.correlation for sync in found]), 0.8)
    yield _at_most("lag in frames, largest", max(abs(sync.lag) for sync in found), 1)
    yield _at_least("PSNR of eyes and brows to drawings in the last second, dB, lowest", min(looks), 24)


def windows(studio: Studio, count: int, num_frames: int) -> Iterator[Line]:
    """How the lips follow the sound in each window by itself."""
    plan = plan_windows(num_frames, WindowConfig(), [num_frames])
    parts = [slice(window.start + window.keep.start, window.start + window.keep.stop) for window in plan]
    found = []
    for number in range(count):
        scene = held_out(600 + number, num_frames, 1)
        opening = mouth_openings(studio.talk(scene, num_frames))[0]
        implied = implied_mouth(scene.sounds[0]).opening
        found.append([measure(opening[part], implied[part]) for part in parts])
    everywhere = [sync for person in found for sync in person]
    yield _at_least(f"correlation in the worst of {len(plan)} windows", min(s.without_lag for s in everywhere), 0.8)
    yield _at_least("correlation in the last window, mean", np.mean([person[-1].without_lag for person in found]), 0.8)
    yield _at_most("lag in frames, largest", max(abs(sync.lag) for sync in everywhere), 1)


def prompted(studio: Studio, count: int, num_frames: int) -> Iterator[Line]:
    """Whether the prompt's two attributes are seen: is the video nearer to a drawing that has them?"""
    right = {"smile": 0, "brows": 0}
    for number in range(count):
        scene = held_out(100 + number, num_frames, 1)
        video = studio.talk(scene, num_frames)
        for name in right:
            right[name] += nearest(scene, video, name) == getattr(scene, name)
    for name, number in right.items():
        yield _at_least(f"{name} is what the prompt says, share", number / count, 0.9)


def two(studio: Studio, count: int, num_frames: int) -> Iterator[Line]:
    """Two people, one of whom speaks."""
    ratios, swapped_ratios, found = [], [], []
    for number in range(count):
        scene = held_out(200 + number, num_frames, 2)
        speaker = number % 2
        sounds = [sound if index == speaker else 0 * sound for index, sound in enumerate(_both_speak(scene, number))]
        scene = replace(scene, sounds=sounds)
        for swapped, target in ((False, ratios), (True, swapped_ratios)):
            openings = mouth_openings(studio.talk(scene, num_frames, swapped), 2)
            speaking, silent = openings[speaker ^ swapped], openings[1 - (speaker ^ swapped)]
            target.append(silent[12:].std() / max(speaking[12:].std(), 1e-9))
            if not swapped:
                found.append(measure(speaking, implied_mouth(sounds[speaker]).opening).correlation)
    yield _at_least("correlation of the speaking one, mean", np.mean(found), 0.8)
    yield _at_most("motion of the silent mouth over the speaking one's, mean", np.mean(ratios), 0.2)
    yield _at_most("the same with the masks swapped", np.mean(swapped_ratios), 0.2)


def held_out(number: int, num_frames: int, num_people: int) -> Scene:
    """Somebody who says something, neither of which was trained on."""
    random = np.random.default_rng((HELD_OUT_SEED, number))
    return random_scene(random, num_frames, num_people, late=False, held_out=True)


def still_psnr(scene: Scene, video: Frames) -> float:
    """Of all frames to the portrait outside the mouth, in dB.

    Eyes and sway are allowed for: a frame's pixel is compared with the nearest of the portrait's within two pixels,
    and eyes and brows are left out like the mouth.
    """
    portrait = scene.frames()[0].astype(np.float64)
    near = np.stack([np.roll(portrait, (y, x), (0, 1)) for y in range(-2, 3) for x in range(-2, 3)])
    counted = np.ones(portrait.shape[:2], bool)
    for index in range(len(scene.people)):
        counted[scene.mouth_box(index)] = counted[scene.eye_box(index)] = False
    errors = [np.square(near - frame).mean(axis=-1).min(axis=0)[counted].mean() for frame in video.astype(np.float64)]
    return float(10 * np.log10(255**2 / np.mean(errors)))


def flicker(scene: Scene, video: Frames) -> float:
    """The mean change from frame to frame outside the mouth and the eyes."""
    counted = np.ones(video.shape[1:3], bool)
    for index in range(len(scene.people)):
        counted[scene.mouth_box(index)] = counted[scene.eye_box(index)] = False
    return float(np.abs(np.diff(video.astype(np.float64), axis=0))[:, counted].mean())


def eyes_psnr(scene: Scene, video: Frames) -> list[float]:
    """Of each person's eyes and brows to the drawings of how they should look once they have arrived, in dB.

    A frame is compared with drawings of open, shut and half shut eyes, each in nine places within half a pixel, and the
    nearest one counts.
    """
    half = 0.5 / head_position(scene.people[0][0], 0, len(scene.people), HEIGHT, scene.width)[2]
    blinks, *sways = (each.ravel() for each in np.meshgrid(np.linspace(0, 1, 5), *[(-half, 0.0, half)] * 2))
    still = np.zeros(len(blinks))
    look = Motion(still, still, still + scene.smile, still + scene.brows, blinks, *sways)
    drawings = draw([(who, look) for who, _ in scene.people], scene.background, HEIGHT, scene.width).astype(np.float64)
    found = []
    for index in range(len(scene.people)):
        box = (slice(None), *scene.eye_box(index))
        errors = [np.square(drawings[box] - frame).mean(axis=(1, 2, 3)).min() for frame in video[box]]
        found.append(float(10 * np.log10(255**2 / np.mean(errors))))
    return found


def nearest(scene: Scene, video: Frames, attribute: str) -> int:
    """-1 or 1: which of two drawings of the same speaking face, alike but for the attribute, the video is nearer to."""
    box = scene.mouth_box(0) if attribute == "smile" else scene.eye_box(0)
    who, motion = scene.people[0]
    distances = {}
    for sign in (-1, 1):
        arrived = np.full(len(motion), float(sign))
        other = Motion(**(vars(motion) | {attribute: arrived, "blink": 0 * arrived}))
        drawn = draw([(who, other)], scene.background, HEIGHT, scene.width)
        difference = np.abs(drawn.astype(float) - video)[(slice(SETTLED, None), *box)]
        distances[sign] = np.median(difference.mean(axis=(1, 2, 3)))
    return min(distances, key=distances.get)


def _both_speak(scene: Scene, number: int) -> list[np.ndarray]:
    """Two voices that speak all the time, as long as the scene's."""
    length = len(scene.sounds[0])
    frames = length * 25 // SAMPLE_RATE_HZ
    return [held_out(300 + 2 * number + index, frames, 1).sounds[0][:length] for index in range(2)]


def _in_turn(sounds: list[np.ndarray]) -> list[np.ndarray]:
    """The first one speaks in the first half, the second one after it."""
    half = len(sounds[0]) // 2
    first, second = (sound.copy() for sound in sounds)
    first[half:] = second[:half] = 0
    return [first, second]


def _sync(video: Frames, scene: Scene) -> float:
    return measure(mouth_openings(video)[0], implied_mouth(scene.sounds[0]).opening).correlation


def _signal(frames: Frames) -> torch.Tensor:
    return torch.from_numpy(frames).permute(3, 0, 1, 2).float() / 127.5 - 1


def _at_least(name: str, value: float, limit: float) -> Line:
    return Line(name, float(value), f">= {limit:.4g}", bool(value >= limit))


def _at_most(name: str, value: float, limit: float) -> Line:
    return Line(name, float(value), f"<= {limit:g}", bool(value <= limit))


@dataclass(frozen=True)
class Part:
    """Lines about so many people in videos so long."""

    lines: Callable[[Studio, int, int], Iterator[Line]]
    count: int
    num_frames: int


PARTS = {
    "lips": Part(lips, 10, 81),
    "scales": Part(scales, 10, 81),
    "long": Part(long, 1, 250),
    "windows": Part(windows, 1, 500),
    "prompted": Part(prompted, 20, 41),
    "two": Part(two, 5, 49),
    "turns": Part(turns, 2, 193),
}


def contact_sheet(studio: Studio, path: Path, num_frames: int) -> None:
    """Writes a picture of four held-out people, ten moments each."""
    rows = [studio.talk(held_out(number, num_frames, 1), num_frames) for number in range(4)]
    moments = np.linspace(0, num_frames - 1, 10).astype(int)
    Image.fromarray(np.concatenate([np.concatenate(row[moments], axis=1) for row in rows])).save(path)


def main(arguments: list[str] | None = None) -> None:
    """Runs the parts that the arguments name and prints their tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default="all", choices=[*PARTS, "all"], metavar="part")
    parser.add_argument("--folder", type=Path, default=MODELS_FOLDER)
    parser.add_argument("--count", type=int, help="people, instead of each part's own number")
    parser.add_argument("--frames", type=int, help="instead of each part's own length")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--text-scale", type=float, default=RECIPES[Recipe.BUNDLED].guidance.text_scale)
    parser.add_argument("--audio-scale", type=float, default=RECIPES[Recipe.BUNDLED].guidance.audio_scale)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--sheet", type=Path, help="write a contact sheet there")
    parser.add_argument("--json", type=Path, help="adds the tables to this file, and writes them as Markdown beside it")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    studio = Studio(options.folder, options.steps, options.text_scale, options.audio_scale)
    if options.sheet:
        contact_sheet(studio, options.sheet, options.frames or PARTS["lips"].num_frames)
    for name in PARTS if "all" in options.parts else options.parts:
        part = PARTS[name]
        count, num_frames = options.count or part.count, options.frames or part.num_frames
        table = Table(f"lip sync, {name}: people {count}, frames {num_frames}")
        for line in part.lines(studio, count, num_frames):
            table.rows.append(line.row)
            print(line.row, flush=True)
        print(f"\n{table.markdown()}\n{machine_line(facts())}")
        if options.json:
            save(options.json, [table])
            options.json.with_suffix(".md").write_text(markdown_of(options.json), encoding="utf-8")


if __name__ == "__main__":
    main()
