"""The Python entry: a picture and a voice become frames, or a finished file."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .acceleration.presets import AccelerationOptions
from .audio.embeds import AudioEmbeds, encode_audio
from .audio.waveform import Sound
from .conditioning.prompts import encode_prompts, split_prompts
from .conditioning.reference_image import fit_frames
from .conditioning.speakers import count_speakers
from .config import GenerationConfig
from .errors import Problems
from .generation.recipes import RECIPES, find_recipe
from .generation.run_spec import RunSpec, choose_size, make_run_spec
from .host import Host, Progress, TorchHost
from .media.video import BackgroundWriter, RateConverter, VideoWriter
from .memory.placement import MemoryConfig, MemoryLimit, encode_resident
from .model_files import ModelFiles
from .parallel.split import Split
from .preflight.checks import RunInputs, RunSetup, check_masks, check_run, check_voices, describe, timed
from .preflight.estimate import RunEstimate
from .request import Request, RequestMedia, read_media
from .shapes import FPS
from .weights import handles

if TYPE_CHECKING:  # imports diffusers, which takes seconds
    from .conditioning.conditioning import Conditioning
    from .generation.store import NoStore, WindowStore
    from .models.transformer.model import MultiTalkTransformer
    from .parallel.ranks import Ranks

logger = logging.getLogger(__name__)

LEDGER_FOLDER = Path("~/.multitalk")  # outside of ComfyUI
OnFrames = Callable[[Tensor], None]


@dataclass(frozen=True)
class CheckedRequest:
    """A request that was read and checked; None for what could not be told.

    Attributes:
        request: as it came.
        media: its files, read.
        spec: every choice of the run.
        masks: `p+1 h w`, the speakers' and the background's; None for one speaker.
        setup: where it is executed.
        estimate: what it takes.
    """

    request: Request
    media: RequestMedia
    spec: RunSpec
    masks: Tensor | None
    setup: RunSetup
    estimate: RunEstimate | None


class MultiTalkPipeline:
    """MultiTalk with its weights: `pipeline(image, audio, prompt=...)` yields frames, `render` writes a file.

    Nothing is read until it is needed; the transformer is kept between calls, the encoders are dropped after use.

    Args:
        model: the transformer's files, with what it computes in and how much memory it may take.
        files: the other weights; None where only encoded inputs are sampled.
        host: device, progress and cancelling; None runs quietly on the best device there is.
        vae_precision: of the VAE.
        ranks: processes on several devices that denoise; None denoises in this one.
    """

    def __init__(
        self,
        model: handles.TransformerFiles,
        files: ModelFiles | None = None,
        host: Host | None = None,
        vae_precision: handles.Precision = handles.Precision.AUTO,
        ranks: Ranks | None = None,
    ):
        self.model, self.host, self.vae_precision = model, host or TorchHost(), vae_precision
        self.ranks = ranks
        self.files = files or ModelFiles(base=model.base, adapter=model.adapter, loras=model.loras)

    @classmethod
    def from_files(
        cls,
        *,
        base: Path | str,
        vae: Path | str,
        text_encoder: Path | str,
        image_encoder: Path | str,
        audio_encoder: Path | str,
        adapter: Path | str | None = None,
        lora: Sequence[str | tuple[Path, float]] = (),
        recipe: str | None = None,
        device: str | None = None,
        memory: MemoryConfig | str = MemoryLimit.AUTO.value,
        precision: str = handles.Precision.AUTO.value,
        vae_precision: str = handles.Precision.AUTO.value,
        host: Host | None = None,
        devices: Sequence[str] = (),
        split: str = Split.AUTO.value,
    ) -> MultiTalkPipeline:
        """A pipeline of weights files in any packaging, by the names of the command line.

        Args:
            base: Wan2.1-I2V, or a file that holds the audio weights too.
            vae: Wan2.1's VAE.
            text_encoder: umT5-XXL.
            image_encoder: CLIP ViT-H.
            audio_encoder: chinese-wav2vec2-base.
            adapter: the audio weights.
            lora: FILE or FILE:STRENGTH.
            recipe: the model that the audio weights belong to; None goes by their name.
            device: such as `cuda:1`; None takes the best.
            memory: how much of the device the transformer may take.
            precision: what the transformer computes in.
            vae_precision: what the VAE computes in; `auto` is bfloat16 on cards that have it, else float32.
            host: in place of `device`: progress and cancelling too.
            devices: several that share the work of each clip, such as `cuda:0` and `cuda:1`.
            split: the part of the work that each takes: `auto`, whole `guidance` passes, or `tokens`.

        Raises:
            ConfigError: a choice is none.
        """
        files = ModelFiles.of(
            base=base, adapter=adapter, vae=vae, text_encoder=text_encoder, image_encoder=image_encoder,
            audio_encoder=audio_encoder, loras=lora, recipe=recipe,
        )  # fmt: skip
        return cls.of(
            files, device=device, memory=memory, precision=precision, vae_precision=vae_precision, host=host,
            devices=devices, split=split,
        )  # fmt: skip

    @classmethod
    def bundled(cls, **options: Any) -> MultiTalkPipeline:
        """The small model of this repository, which knows drawn faces; options are those of `of`."""
        return cls.of(ModelFiles.bundled(), **options)

    @classmethod
    def of(
        cls,
        files: ModelFiles,
        *,
        device: str | None = None,
        memory: MemoryConfig | str = MemoryLimit.AUTO.value,
        precision: str = handles.Precision.AUTO.value,
        vae_precision: str = handles.Precision.AUTO.value,
        host: Host | None = None,
        devices: Sequence[str] = (),
        split: str = Split.AUTO.value,
    ) -> MultiTalkPipeline:
        """A pipeline of named files, see `from_files`; a file that is missing is told when it is needed."""
        host = host or TorchHost(device or (devices[0] if devices else None))
        model = handles.TransformerFiles(
            base=files.base or Path(),
            adapter=files.adapter,
            loras=files.loras,
            recipe=files.recipe or find_recipe(files.audio_weights),
            dtype=handles.Precision(precision).on(host.device),
            memory=memory if isinstance(memory, MemoryConfig) else MemoryConfig(MemoryLimit(memory)),
        )
        ranks = None
        if len(devices) > 1:
            from .parallel.ranks import Ranks  # imports diffusers

            ranks = Ranks(devices, Split(split))
        return cls(model, files, host, handles.Precision(vae_precision), ranks)

    def close(self) -> None:
        """Ends the processes of several devices; the next run starts them again."""
        if self.ranks is not None:
            self.ranks.close()

    @torch.inference_mode()
    def __call__(
        self,
        image: Path | str | Tensor,
        audio: Path | str | Sound | Sequence[Path | str | Sound | None] | None,
        prompt: str = "",
        **options: Any,
    ) -> Iterator[Tensor]:
        """Yields the frames of a talking video, `c f h w` in -1..1, 25 a second, window by window.

        Args:
            image: the portrait, or a video to dub (InfiniteTalk).
            audio: a voice, or one for each speaker.
            prompt: what the video shows.
            **options: the other arguments of `Request.of`.

        Raises:
            ConfigError: all that is wrong with the request, at once.
        """
        run = self.check(Request.of(image, audio, prompt, **options))
        return self.sample(*self.encode(run), run.spec)

    @torch.inference_mode()
    def render(
        self,
        output: Path | str,
        image: Path | str | Tensor | None,
        audio: Path | str | Sound | Sequence[Path | str | Sound | None] | None,
        prompt: str = "",
        *,
        resume_folder: Path | str | None = None,
        restart: bool = False,
        remote: str | None = None,
        ledger_folder: Path | str = LEDGER_FOLDER,
        problems: Problems | None = None,
        **options: Any,
    ) -> Path:
        """Writes a talking video with its sound, and returns its path.

        Args:
            output: an mp4 file; its folder is made.
            image: the portrait, or a video to dub (InfiniteTalk).
            audio: a voice, or one for each speaker.
            prompt: what the video shows.
            resume_folder: keeps finished windows until the video is written, and goes on from them.
            restart: makes every window again, whatever `resume_folder` holds.
            remote: the id of an endpoint of fal that makes it, for money, in place of the weights here; the price, and
                that of the other endpoints, is logged before anything is sent. `restart` buys it again.
            ledger_folder: of what was bought from fal, and of its key; a ComfyUI's is user/__multitalk.
            problems: what is known to be wrong already.
            **options: the other arguments of `Request.of`.

        Raises:
            ConfigError: all that is wrong with the request, at once.
            MultiTalkError: it went wrong later.
        """
        problems = problems or Problems()
        request = Request.of(image, audio, prompt, problems=problems, **options)
        if remote is not None:
            from .remote.render import Resume, render_request

            resume = Resume.ALWAYS_NEW if restart else Resume.AUTO
            return render_request(request, Path(output), remote, self.host, problems, Path(ledger_folder), resume)
        run = self.check(request, Path(output), None if resume_folder is None else Path(resume_folder), problems)
        audio_embeds, conditioning = self.encode(run)
        spec, setup, estimate = run.spec, run.setup, run.estimate
        del run  # the picture, or the whole video to dub, at its own size
        return self.write(audio_embeds, conditioning, spec, setup, estimate, restart=restart)

    def check(
        self,
        request: Request,
        output: Path | None = None,
        resume_folder: Path | None = None,
        problems: Problems | None = None,
    ) -> CheckedRequest:
        """Reads a request's media and the weights' headers.

        Raises:
            ConfigError: all that is wrong, at once.
        """
        problems = problems or Problems()
        self.files.check_complete(problems)
        config, row = request.config, RECIPES[self.model.recipe]
        media = read_media(request, problems)
        size = masks = None
        if media.frames is not None:
            height, width = media.frames.shape[1:3]
            size = problems.attempt("size", choose_size, config, row, height, width)
            if size is not None:
                masks = check_masks(media.places, (height, width), size, problems)
        num_frames = check_voices(media.speeches, request.arrangement, config.num_frames, config.fps, problems)
        num_boxes = sum(voice.box is not None for voice in request.voices)
        num_speakers, num_places = count_speakers(len(request.voices), num_boxes)
        spec = make_run_spec(config, self.model.recipe, size, num_frames, max(1, num_speakers))
        setup = RunSetup(
            self.files,
            self.model.dtype,
            self.model.memory,
            store=resume_folder,
            timings=resume_folder,
            output=output,
            num_devices=1 if self.ranks is None else len(self.ranks.devices),
            split=Split.AUTO if self.ranks is None else self.ranks.split,
        )
        inputs = RunInputs(
            num_places=num_places,
            num_source_frames=1 if media.frames is None else len(media.frames),
            num_prompts=len(split_prompts(request.prompt)),
            sound_bytes=media.sound_bytes,
        )
        estimate = check_run(spec, inputs, setup, problems, self.host)
        problems.raise_errors()
        logger.log(logging.WARNING if problems.notes else logging.INFO, "%s", describe(problems, estimate))
        return CheckedRequest(request, media, spec, masks, setup, estimate)

    def encode(self, run: CheckedRequest) -> tuple[AudioEmbeds, Conditioning]:
        """The encoded inputs: a place for each voice, a voice for each place."""
        from .conditioning.conditioning import match_speakers  # imports diffusers

        return match_speakers(self.encode_audio(run), self.encode_conditioning(run))

    def encode_audio(self, run: CheckedRequest) -> AudioEmbeds:
        """The speech features and the soundtrack; the encoder is read for them and dropped again."""
        request, config = run.request, run.request.config
        assert self.files.audio_encoder is not None, "checked before"
        self.host.report(Progress("audio", 0))
        encoder = handles.audio_encoder(self.files.audio_encoder).model
        encode = partial(
            encode_audio,
            encoder,
            run.media.speeches,
            request.arrangement,
            round(config.num_frames * config.fps / FPS),
            normalize_input=handles.normalizes_input(encoder),
            fps=config.fps,
            soundtrack=run.media.soundtrack,
            windows=run.spec.streamed_windows,
        )
        return encode_resident(encoder, self.host, encode)

    def encode_conditioning(self, run: CheckedRequest) -> Conditioning:
        """The fitted picture and the encoded prompts; the text encoder, the largest of the encoders, is dropped."""
        from .conditioning.conditioning import Conditioning  # imports diffusers

        files, frames, size = self.files, run.media.frames, run.spec.size
        assert files.text_encoder and files.vae and files.image_encoder, "checked before"
        assert frames is not None and size is not None, "checked before"
        self.host.report(Progress("prompt", 0))
        encoder = handles.text_encoder(files.text_encoder, self.host.device).model
        encode = partial(encode_prompts, encoder, run.request.prompt, run.request.negative_prompt)
        prompts, negative = encode_resident(encoder.model, self.host, encode)
        return Conditioning(
            source=fit_frames(frames, len(frames), size),
            prompt_embeds=prompts,
            negative_embeds=negative,
            vae=handles.vae(files.vae, self.host.device, self.vae_precision).model,
            image_encoder=handles.image_encoder(files.image_encoder).model,
            speaker_masks=run.masks,
            image_hw=(frames.shape[1], frames.shape[2]),
        )

    def sample(self, audio_embeds: AudioEmbeds, conditioning: Conditioning, spec: RunSpec) -> Iterator[Tensor]:
        """The frames of encoded inputs, `c f h w` in -1..1, 25 a second, window by window."""
        return self._generate(audio_embeds, conditioning, spec)

    def _generate(
        self,
        audio_embeds: AudioEmbeds,
        conditioning: Conditioning,
        spec: RunSpec,
        store: WindowStore | NoStore | None = None,
    ) -> Iterator[Tensor]:
        from .generate import generate  # imports diffusers
        from .generation.denoiser import local_denoiser

        make_denoiser = local_denoiser if self.ranks is None else partial(self.ranks.denoiser, self.model)
        return generate(
            self.transformer, audio_embeds, conditioning, spec, self.host,
            memory=self.model.memory, store=store, make_denoiser=make_denoiser,
        )  # fmt: skip

    def write(
        self,
        audio_embeds: AudioEmbeds,
        conditioning: Conditioning,
        spec: RunSpec,
        setup: RunSetup,
        estimate: RunEstimate | None,
        *,
        restart: bool = False,
        on_frames: OnFrames | None = None,
    ) -> Path:
        """Samples encoded inputs into `setup.output`, with the soundtrack, and goes on from windows that are kept.

        Args:
            restart: forgets the windows that an earlier run has left.
            on_frames: is handed each window's frames, as the file shows them, `c f h w` in -1..1. Without it the video
                grows in a file that can be watched meanwhile.
        """
        from .generate import open_store  # imports diffusers
        from .generation.store import NoStore

        assert setup.output is not None, "a file to write"
        store = NoStore()
        if setup.store is not None:
            store = open_store(setup.store, self.transformer, audio_embeds, conditioning, spec)
            if restart:
                store.clear()
        windows = self._generate(audio_embeds, conditioning, spec, store)
        assert spec.num_frames is not None, "encoded speech has a length"
        convert = RateConverter(spec.num_frames, spec.fps, spec.num_output_frames)
        part = store.part(setup.output) if on_frames is None else None
        if part is not None:
            logger.info("The video grows in %s, where it can be watched meanwhile.", part)
        with (
            timed(spec, setup, estimate, self.host, is_whole=store.is_empty),
            VideoWriter(setup.output, spec.fps, audio_embeds.soundtrack, part) as file,
            BackgroundWriter(file) as writer,
        ):
            for frames in map(convert, windows):
                writer.add(frames)
                if on_frames is not None:
                    on_frames(frames)
        store.discard()
        return setup.output

    def make_spec(
        self,
        config: GenerationConfig,
        audio_embeds: AudioEmbeds,
        conditioning: Conditioning,
        acceleration: AccelerationOptions | None = None,
    ) -> RunSpec:
        """Every choice of a run of encoded inputs."""
        return make_run_spec(
            config,
            self.model.recipe,
            (conditioning.height, conditioning.width),
            audio_embeds.num_output_frames or audio_embeds.num_frames,
            audio_embeds.num_speakers,
            audio_embeds.features.shape[1],
            acceleration,
        )

    @property
    def transformer(self) -> MultiTalkTransformer:
        """The transformer, read on first use."""
        return self.model.transformer
