"""Lip sync of the bundled model on held-out faces and speech: `python -m benchmarks.lip_sync`.

Prints a table for each part. The metrics are of frames and sounds alone (`demo.lip_sync`), or compare the frames with
drawings of the same face.
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
from pipeline.conditioning.prompts import DEFAULT_NEGATIVE_PROMPT
from pipeline.conditioning.speakers import Place, speaker_masks
from pipeline.config import Acceleration, GenerationConfig, Recipe
from pipeline.generate import generate
from pipeline.generation.recipes import RECIPES
from pipeline.generation.run_spec import make_run_spec
from pipeline.generation.windows import WindowConfig, plan_windows
from pipeline.host import Host, TorchHost
from pipeline.weights import build
from pipeline.weights.handles import Precision

from .machine import facts
from .report import Row, Table, machine_line, save

MODELS_FOLDER = Path(__file__).resolve().parents[1] / "demo" / "weights"
SETTLING_FRAMES = 15  # after which a face has the expression of its prompt
HELD_OUT_SEED = 7_000_000  # of scenes; the training draws from other streams
Frames = NDArray[np.uint8]


def transformer_files(folder: Path) -> tuple[Path, Path]:
    """Base and adapter of a small model."""
    return (
        folder / "diffusion_models" / "wan2.1_i2v_480p_demo.safetensors",
        folder / "model_patches" / "multitalk_demo.safetensors",
    )


class DemoModel:
    """Bundled model, loaded once."""

    def __init__(self, folder: Path, steps: int, text_scale: float, audio_scale: float) -> None:
        self.transformer = build.load_transformer(
            *transformer_files(folder), dtype=Precision.AUTO.on(torch.device("cpu"))
        )
        self.vae = build.load_vae(folder / "vae/wan_2.1_vae_demo.safetensors")
        self.text = build.load_text_encoder(folder / "text_encoders/umt5_demo.safetensors", dtype=torch.float32)
        self.image = build.load_image_encoder(folder / "clip_vision/clip_vision_h_demo.safetensors", torch.float32)
        self.audio = build.load_audio_encoder(folder / "audio_encoders/wav2vec2_demo.safetensors")
        self.config = GenerationConfig(steps=steps, text_scale=text_scale, audio_scale=audio_scale)

    @torch.inference_mode()
    def render(
        self, scene: Scene, num_frames: int, swapped: bool = False,
        acceleration: Acceleration | AccelerationOptions = Acceleration.NONE, host: Host | None = None,
        **guidance: float | bool,
    ) -> Frames:  # fmt: skip
        """Frames `f h w 3` in which the scene's first drawing says what its people say.

        Args:
            scene: of one or two people.
            num_frames: of the video.
            swapped: each person's voice gets the other person's mask.
            acceleration: a preset or single options.
            host: gets the progress; None takes a CPU's without any.
            guidance: scales and projection, in place of the model's.
        """
        portrait = torch.from_numpy(scene.frames()[:1])
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
        embeds = encode_audio(self.audio, sounds, Arrangement.PARALLEL, num_frames)
        is_preset = isinstance(acceleration, Acceleration)
        config = replace(self.config, acceleration=acceleration if is_preset else Acceleration.NONE, **guidance)
        spec = make_run_spec(
            config, Recipe.BUNDLED, size, embeds.num_frames, len(sounds),
            acceleration=None if is_preset else acceleration,
        )  # fmt: skip
        windows = list(generate(self.transformer, embeds, conditioning, spec, host or TorchHost("cpu")))
        video = torch.cat(windows, dim=1).permute(1, 2, 3, 0)
        return ((video + 1) * 127.5).round().clamp(0, 255).byte().numpy()


def lips(model: DemoModel, count: int, num_frames: int) -> Iterator[Row]:
    """Rows on one person: lip sync with the own audio and with another one, and stillness of the face."""
    scenes = [held_out(number, num_frames, 1) for number in range(count)]
    start_s = time.monotonic()
    videos = [model.render(scene, num_frames) for scene in scenes]
    seconds = (time.monotonic() - start_s) / count
    openings = [mouth_openings(video)[0] for video in videos]
    references = [implied_mouth(scene.sounds[0]).opening for scene in scenes]
    syncs = [measure(*pair) for pair in zip(openings, references, strict=True)]
    shuffled = [*references[1:], references[0]]
    cross_correlations = [abs(measure(*pair).without_lag) for pair in zip(openings, shuffled, strict=True)]
    yield _at_least("correlation with the own audio, mean", np.mean([sync.correlation for sync in syncs]), 0.8)
    yield _at_most("lag in frames, largest", max(abs(sync.lag) for sync in syncs), 1)
    yield _at_most("correlation with another audio, mean of its size", np.mean(cross_correlations), 0.3)
    yield _at_least("PSNR to the portrait outside the mouth, dB, mean", np.mean([*map(still_psnr, scenes, videos)]), 24)
    eyes_db = [dB for s, v in zip(scenes, videos, strict=True) for dB in eyes_psnr(s, v[SETTLING_FRAMES:])]
    yield _at_least("PSNR of eyes and brows to drawings, dB, lowest", min(eyes_db), 24)
    ratio = np.mean([flicker(s, v) / flicker(s, s.frames()) for s, v in zip(scenes, videos, strict=True)])
    yield _at_most("flicker, times that of the drawn clips", ratio, 1)
    yield _at_most(f"seconds for {num_frames} frames", seconds, 60)


def scales(model: DemoModel, count: int, num_frames: int) -> Iterator[Row]:
    """Rows on audio guidance: more of it must not loosen the lips by more than chance.

    That is the standard error over people, and 0.01 at most.
    """
    scenes = [held_out(number, num_frames, 1) for number in range(count)]
    best = None
    for scale, projected in ((1.0, False), (2.0, False), (4.0, False), (4.0, True)):
        videos = [model.render(scene, num_frames, audio_scale=scale, projected=projected) for scene in scenes]
        correlations = np.array([*map(correlation, videos, scenes)])
        metric = f"correlation at audio scale {scale:g}" + (", projected guidance" if projected else "")
        if best is None:
            best = correlations
        chance = min(((correlations - best).var() / max(count - 1, 1)) ** 0.5, 0.01)
        yield _at_least(metric, correlations.mean(), best.mean() - chance)
        best = max(best, correlations, key=np.mean)


def long(model: DemoModel, count: int, num_frames: int) -> Iterator[Row]:
    """Rows on several windows: lip sync, stillness of the last second, and steps where two windows meet."""
    scenes = [held_out(500 + number, num_frames, 1) for number in range(count)]
    videos = [model.render(scene, num_frames) for scene in scenes]
    yield _at_least("correlation, mean", np.mean([*map(correlation, videos, scenes)]), 0.8)
    last = [still_psnr(scene, video[-25:]) for scene, video in zip(scenes, videos, strict=True)]
    yield _at_least("PSNR outside the mouth in the last second, dB, mean", np.mean(last), 24)
    plan = plan_windows(num_frames, WindowConfig(), [num_frames])
    seams = [window.start + window.overlap - 1 for window in plan[1:]]
    jumps = []
    for video in videos:
        steps = np.abs(np.diff(video.astype(np.float64), axis=0)).mean(axis=(1, 2, 3))
        jumps.append(steps[seams].max() / np.median(steps))
    yield _at_most("frame difference at a seam, times the median, largest", max(jumps), 1.5)


def dialogue(model: DemoModel, count: int, num_frames: int) -> Iterator[Row]:
    """Rows on two people in several windows: lip sync of both, and their eyes in the last second."""
    syncs, eyes_db = [], []
    for number in range(count):
        scene = held_out(700 + number, num_frames, 2)
        scene = replace(scene, sounds=_alternate(_two_voices(scene, 50 + number)))
        video = model.render(scene, num_frames)
        openings = mouth_openings(video, 2)
        syncs += [
            measure(opening, implied_mouth(sound).opening)
            for opening, sound in zip(openings, scene.sounds, strict=True)
        ]
        eyes_db += eyes_psnr(scene, video[-25:])
    yield _at_least("correlation of each one, mean", np.mean([sync.correlation for sync in syncs]), 0.8)
    yield _at_most("lag in frames, largest", max(abs(sync.lag) for sync in syncs), 1)
    yield _at_least("PSNR of eyes and brows to drawings in the last second, dB, lowest", min(eyes_db), 24)


def windows(model: DemoModel, count: int, num_frames: int) -> Iterator[Row]:
    """Rows on the lip sync in each window by itself."""
    plan = plan_windows(num_frames, WindowConfig(), [num_frames])
    parts = [slice(window.start + window.keep.start, window.start + window.keep.stop) for window in plan]
    syncs = []
    for number in range(count):
        scene = held_out(600 + number, num_frames, 1)
        opening = mouth_openings(model.render(scene, num_frames))[0]
        reference = implied_mouth(scene.sounds[0]).opening
        syncs.append([measure(opening[part], reference[part]) for part in parts])
    all_syncs = [sync for person in syncs for sync in person]
    yield _at_least(
        f"correlation in the worst of {len(plan)} windows", min(sync.without_lag for sync in all_syncs), 0.8
    )
    yield _at_least("correlation in the last window, mean", np.mean([person[-1].without_lag for person in syncs]), 0.8)
    yield _at_most("lag in frames, largest", max(abs(sync.lag) for sync in all_syncs), 1)


def prompt_attributes(model: DemoModel, count: int, num_frames: int) -> Iterator[Row]:
    """Rows on the prompt's two attributes: the share of videos nearer to a drawing with them than to one without."""
    hits = {"smile": 0, "brows": 0}
    for number in range(count):
        scene = held_out(100 + number, num_frames, 1)
        video = model.render(scene, num_frames)
        for name in hits:
            hits[name] += nearest(scene, video, name) == getattr(scene, name)
    for name, number in hits.items():
        yield _at_least(f"{name} is what the prompt says, share", number / count, 0.9)


def two(model: DemoModel, count: int, num_frames: int) -> Iterator[Row]:
    """Rows on two people, one of whom speaks."""
    ratios, swapped_ratios, correlations = [], [], []
    for number in range(count):
        scene = held_out(200 + number, num_frames, 2)
        speaker = number % 2
        sounds = [sound if index == speaker else 0 * sound for index, sound in enumerate(_two_voices(scene, number))]
        scene = replace(scene, sounds=sounds)
        for swapped, target in ((False, ratios), (True, swapped_ratios)):
            openings = mouth_openings(model.render(scene, num_frames, swapped), 2)
            speaker_opening, silent_opening = openings[speaker ^ swapped], openings[1 - (speaker ^ swapped)]
            target.append(silent_opening[12:].std() / max(speaker_opening[12:].std(), 1e-9))
            if not swapped:
                correlations.append(measure(speaker_opening, implied_mouth(sounds[speaker]).opening).correlation)
    yield _at_least("correlation of the speaking one, mean", np.mean(correlations), 0.8)
    yield _at_most("motion of the silent mouth over the speaking one's, mean", np.mean(ratios), 0.2)
    yield _at_most("the same with the masks swapped", np.mean(swapped_ratios), 0.2)


def held_out(number: int, num_frames: int, num_people: int) -> Scene:
    """Scene of faces, voices and sentences that are not in the training."""
    random = np.random.default_rng((HELD_OUT_SEED, number))
    return random_scene(random, num_frames, num_people, late=False, held_out=True)


def still_psnr(scene: Scene, video: Frames) -> float:
    """PSNR of all frames to the portrait outside the mouth, in dB.

    Eyes and sway are allowed for: a frame's pixel is compared with the nearest of the portrait's within two pixels,
    and eyes and brows are left out like the mouth.
    """
    portrait = scene.frames()[0].astype(np.float64)
    near = np.stack([np.roll(portrait, (y, x), (0, 1)) for y in range(-2, 3) for x in range(-2, 3)])
    still = _still_pixels(scene)
    errors = [np.square(near - frame).mean(axis=-1).min(axis=0)[still].mean() for frame in video.astype(np.float64)]
    return float(10 * np.log10(255**2 / np.mean(errors)))


def flicker(scene: Scene, video: Frames) -> float:
    """Mean change from frame to frame outside the mouth and the eyes, in grey levels."""
    return float(np.abs(np.diff(video.astype(np.float64), axis=0))[:, _still_pixels(scene)].mean())


def eyes_psnr(scene: Scene, video: Frames) -> list[float]:
    """PSNR of each person's eyes and brows to drawings with the prompt's expression, in dB.

    A frame is compared with drawings of open, shut and half shut eyes, each in nine places within half a pixel, and the
    nearest one counts.
    """
    half = 0.5 / head_position(scene.people[0][0], 0, len(scene.people), HEIGHT, scene.width)[2]
    blinks, *sways = (axis.ravel() for axis in np.meshgrid(np.linspace(0, 1, 5), *[(-half, 0.0, half)] * 2))
    still = np.zeros(len(blinks))
    motion = Motion(still, still, still + scene.smile, still + scene.brows, blinks, *sways)
    people = [(face, motion) for face, _ in scene.people]
    drawings = draw(people, scene.background, HEIGHT, scene.width).astype(np.float64)
    psnr_db = []
    for index in range(len(scene.people)):
        box = (slice(None), *scene.eye_box(index))
        errors = [np.square(drawings[box] - frame).mean(axis=(1, 2, 3)).min() for frame in video[box]]
        psnr_db.append(float(10 * np.log10(255**2 / np.mean(errors))))
    return psnr_db


def nearest(scene: Scene, video: Frames, attribute: str) -> int:
    """Attribute, -1 or 1, of the nearer one of two drawings of the same speaking face."""
    box = scene.mouth_box(0) if attribute == "smile" else scene.eye_box(0)
    face, motion = scene.people[0]
    distances = {}
    for sign in (-1, 1):
        track = np.full(len(motion), float(sign))
        variant = Motion(**(vars(motion) | {attribute: track, "blink": 0 * track}))
        drawing = draw([(face, variant)], scene.background, HEIGHT, scene.width)
        difference = np.abs(drawing.astype(float) - video)[(slice(SETTLING_FRAMES, None), *box)]
        distances[sign] = np.median(difference.mean(axis=(1, 2, 3)))
    return min(distances, key=distances.get)


def _still_pixels(scene: Scene) -> NDArray[np.bool_]:
    """Mask `h w` of the pixels outside mouths and eyes."""
    still = np.ones((HEIGHT, scene.width), bool)
    for index in range(len(scene.people)):
        still[scene.mouth_box(index)] = still[scene.eye_box(index)] = False
    return still


def _two_voices(scene: Scene, number: int) -> list[np.ndarray]:
    """Two voices without long pauses, as long as the scene's."""
    length = len(scene.sounds[0])
    frames = length * 25 // SAMPLE_RATE_HZ
    return [held_out(300 + 2 * number + index, frames, 1).sounds[0][:length] for index in range(2)]


def _alternate(sounds: list[np.ndarray]) -> list[np.ndarray]:
    """First voice in the first half, second one after it."""
    half = len(sounds[0]) // 2
    first, second = (sound.copy() for sound in sounds)
    first[half:] = second[:half] = 0
    return [first, second]


def correlation(video: Frames, scene: Scene) -> float:
    """Correlation of the first person's lips with its voice, at the best lag."""
    return measure(mouth_openings(video)[0], implied_mouth(scene.sounds[0]).opening).correlation


def _at_least(metric: str, value: float, limit: float) -> Row:
    return _row(metric, value, f">= {limit:.4g}", value >= limit)


def _at_most(metric: str, value: float, limit: float) -> Row:
    return _row(metric, value, f"<= {limit:g}", value <= limit)


def _row(metric: str, value: float, target: str, passes: bool) -> Row:
    return {"metric": metric, "value": float(value), "target": target, "passes": "yes" if passes else "no"}


@dataclass(frozen=True)
class Part:
    """Rows of a table, and the number of people and of frames that they are measured on."""

    rows: Callable[[DemoModel, int, int], Iterator[Row]]
    count: int
    num_frames: int


PARTS = {
    "lips": Part(lips, 10, 81),
    "scales": Part(scales, 10, 81),
    "long": Part(long, 1, 250),
    "windows": Part(windows, 1, 500),
    "prompted": Part(prompt_attributes, 20, 41),
    "two": Part(two, 5, 49),
    "turns": Part(dialogue, 2, 193),
}


def contact_sheet(model: DemoModel, path: Path, num_frames: int) -> None:
    """Writes a picture of four held-out people, ten moments each."""
    rows = [model.render(held_out(number, num_frames, 1), num_frames) for number in range(4)]
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
    model = DemoModel(options.folder, options.steps, options.text_scale, options.audio_scale)
    if options.sheet:
        contact_sheet(model, options.sheet, options.frames or PARTS["lips"].num_frames)
    for name in PARTS if "all" in options.parts else options.parts:
        part = PARTS[name]
        count, num_frames = options.count or part.count, options.frames or part.num_frames
        table = Table(f"lip sync, {name}: people {count}, frames {num_frames}")
        for row in part.rows(model, count, num_frames):
            table.rows.append(row)
            print(row, flush=True)
        print(f"\n{table.markdown()}\n{machine_line(facts())}")
        if options.json:
            save(options.json, [table])


if __name__ == "__main__":
    main()
