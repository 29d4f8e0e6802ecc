"""A tiny run: a random transformer, a random VAE, a random face and random speech."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from multitalk_pack.pipeline import generate as engine
from multitalk_pack.pipeline.acceleration.presets import AccelerationOptions
from multitalk_pack.pipeline.audio.embeds import AudioEmbeds
from multitalk_pack.pipeline.conditioning.conditioning import Conditioning
from multitalk_pack.pipeline.config import GenerationConfig, Recipe
from multitalk_pack.pipeline.generation.run_spec import RunSpec, make_run_spec
from multitalk_pack.pipeline.generation.store import WindowStore
from multitalk_pack.pipeline.host import Host, Preview, Progress, TorchHost
from multitalk_pack.pipeline.media.pixels import to_uint8
from multitalk_pack.pipeline.models.transformer.model import MultiTalkTransformer
from multitalk_pack.pipeline.models.vae.video_vae import VideoVae
from torch import Tensor

from . import transformer as tiny_transformer

HEIGHT, WIDTH = 32, 48


class RecordingHost(TorchHost):
    """Remembers what it was told, and can want the run to end."""

    def __init__(self, cancel_after: int | None = None):
        super().__init__("cpu")
        self.progress: list[Progress] = []
        self.previews: list[Preview] = []
        self.cancel_checks = 0
        self.cancel_after = cancel_after

    def report(self, progress: Progress, preview: Preview | None = None) -> None:
        self.progress.append(progress)
        self.previews += [] if preview is None else [preview]

    def check_cancelled(self) -> None:
        self.cancel_checks += 1
        if self.cancel_after is not None and self.cancel_checks > self.cancel_after:
            raise KeyboardInterrupt


def random(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def vae(seed: int = 5, width: int = 2) -> VideoVae:
    """A Wan VAE whose random weights keep pixels in range."""
    with torch.random.fork_rng():  # the constructor draws its weights from the global generator
        model = AutoencoderKLWan(base_dim=width, z_dim=16, num_res_blocks=1).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
        parameter.data = torch.randn(parameter.shape, generator=generator) / fan_in**0.5
    return VideoVae(model)


def conditioning(model, num_speakers: int = 1, seed: int = 6) -> Conditioning:
    masks = None
    if num_speakers > 1:
        masks = torch.zeros(num_speakers + 1, HEIGHT, WIDTH)
        for speaker, columns in enumerate(torch.arange(WIDTH).chunk(num_speakers)):
            masks[speaker, :, columns] = 1
    return Conditioning(
        source=to_uint8(random((1, HEIGHT, WIDTH, 3), seed)),
        prompt_embeds=(random((5, model.config.text_dim), seed + 1),),
        negative_embeds=random((4, model.config.text_dim), seed + 2),
        vae=vae(),
        image_embeds=random((5, model.config.image_dim), seed + 3),
        speaker_masks=masks,
    )


def audio(model, num_frames: int, num_speakers: int = 1, seed: int = 9) -> AudioEmbeds:
    features = random((num_speakers, num_frames + 10, *model.config.audio_features), seed)
    return AudioEmbeds(features, num_frames)


def config(num_frames: int = 0, steps: int = 2, seed: int = 42, **choices) -> GenerationConfig:
    """Small windows and the published scales."""
    small = {"window_frames": 9, "motion_frames": 5, "text_scale": 5.0, "audio_scale": 4.0}
    return GenerationConfig(num_frames=num_frames, steps=steps, seed=seed, **(small | choices))


def spec(
    audio: AudioEmbeds,
    conditioning: Conditioning,
    config: GenerationConfig,
    recipe: Recipe = Recipe.MULTITALK,
    acceleration: AccelerationOptions | None = None,
) -> RunSpec:
    """The run that these inputs and choices make."""
    return make_run_spec(
        config,
        recipe,
        (conditioning.height, conditioning.width),
        audio.num_frames,
        audio.num_speakers,
        audio.features.shape[1],
        acceleration=acceleration,
    )


def generate(
    model: MultiTalkTransformer,
    audio: AudioEmbeds,
    conditioning: Conditioning,
    choices: GenerationConfig | None = None,
    host: Host | None = None,
    recipe: Recipe = Recipe.MULTITALK,
    acceleration: AccelerationOptions | None = None,
    **options,
) -> Iterator[Tensor]:
    """The frames of a run, window by window."""
    run_spec = spec(audio, conditioning, choices or config(), recipe, acceleration)
    return engine.generate(model, audio, conditioning, run_spec, host or RecordingHost(), **options)


def open_store(
    folder: Path, model: MultiTalkTransformer, audio: AudioEmbeds, conditioning: Conditioning, choices=None, **options
) -> WindowStore:
    """The store of the same run."""
    run_spec = spec(audio, conditioning, choices or config(), **options)
    return engine.open_store(folder, model, audio, conditioning, run_spec)


def model(num_layers: int = 2):
    return tiny_transformer.tiny(num_layers=num_layers)
