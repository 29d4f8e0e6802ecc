"""Options nodes: the sampler's rarer settings, which have their defaults without these nodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..pipeline.acceleration.attention_kernels import AttentionKernel
from ..pipeline.acceleration.caches import CacheKind
from ..pipeline.acceleration.compilation import Compile
from ..pipeline.acceleration.presets import AccelerationOptions
from ..pipeline.config import ColorMatch, SamplerKind, WindowPlan
from ..pipeline.parallel.split import Split
from . import sockets

if TYPE_CHECKING:
    from ..pipeline.parallel.ranks import Ranks

CATEGORY = "MultiTalk/options"
AUTO = "auto"  # the model's


@dataclass(frozen=True)
class SamplerOptions:
    """The options nodes' addition to the sampler's widgets.

    Attributes:
        acceleration: None follows the sampler's preset.
        choices: further fields of `GenerationConfig`.
        resume: keeps finished windows until the video is written.
        ranks: processes on several devices that share the work; None samples on ComfyUI's own.
    """

    acceleration: AccelerationOptions | None = None
    choices: Mapping[str, Any] = field(default_factory=dict)
    resume: bool = True
    ranks: Ranks | None = None

    def with_choices(self, **choices: Any) -> SamplerOptions:
        """The same with further choices."""
        return replace(self, choices={**self.choices, **choices})


class MultiTalkLongVideoOptions(io.ComfyNode):
    """The windows of a long video, and the transitions between them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MultiTalkLongVideoOptions",
            display_name="MultiTalk Long Video Options",
            search_aliases=["infinitetalk", "windows", "resume", "deflicker", "color"],
            category=CATEGORY,
            description="Windows, motion frames, colours, flicker, resuming, and a first look at a long run.",
            inputs=[
                sockets.Options.Input("options", optional=True, tooltip="Other options, to set these beside them."),
                io.Combo.Input(
                    "plan",
                    options=WindowPlan,
                    default=WindowPlan.EXACT,
                    tooltip="exact gives the frames asked for; published cuts and mirrors as the published program.",
                ),
                io.Int.Input(
                    "window_frames",
                    default=0,
                    min=0,
                    max=1001,
                    tooltip="Frames sampled together, 4n+1; 0 takes the model's: up to 97 that fit the request, "
                    "InfiniteTalk's 81, FlashTalk's 33.",
                ),
                io.Int.Input(
                    "motion_frames",
                    default=0,
                    min=0,
                    max=249,
                    tooltip="Frames handed on to the next window, 4n+1; 0 takes the model's 25, 9 or 5.",
                ),
                io.Float.Input(
                    "color_strength",
                    default=-1.0,
                    min=-1.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How far the colours of several windows are moved to the portrait's, against drift; -1 "
                    "takes the model's.",
                ),
                io.Boolean.Input(
                    "first_look",
                    default=False,
                    tooltip="Makes a video of 41 frames only, to judge a long run for little.",
                ),
                io.Boolean.Input(
                    "resume",
                    default=SamplerOptions.resume,
                    tooltip="Keeps finished windows on disk until the video is written, and goes on from them.",
                ),
                io.Float.Input(
                    "deflicker",
                    default=-1.0,
                    min=-1.0,
                    max=20.0,
                    step=0.5,
                    tooltip="Holds back changes from frame to frame of up to so many of 255 grey levels; 0 is off, -1 "
                    "takes the model's.",
                ),
                io.Combo.Input(
                    "color_match",
                    options=[AUTO, *(match.value for match in ColorMatch)],
                    default=AUTO,
                    optional=True,
                    tooltip="steady compares the colours of two seconds and fades the seams; frame compares each frame "
                    "by itself, as published. Auto takes the model's.",
                ),
            ],
            outputs=[sockets.Options.Output(display_name="sampler_options")],
        )

    @classmethod
    def execute(
        cls,
        plan: str,
        window_frames: int,
        motion_frames: int,
        color_strength: float,
        first_look: bool,
        resume: bool,
        deflicker: float,
        options: SamplerOptions | None = None,
        color_match: str = AUTO,
    ) -> io.NodeOutput:
        sampler_options = (options or SamplerOptions()).with_choices(
            plan=WindowPlan(plan),
            window_frames=window_frames or None,
            motion_frames=motion_frames or None,
            color_strength=None if color_strength < 0 else color_strength,
            deflicker=None if deflicker < 0 else deflicker,
            color_match=None if color_match == AUTO else ColorMatch(color_match),
            first_look=first_look,
        )
        return io.NodeOutput(replace(sampler_options, resume=resume))


class MultiTalkAccelerationOptions(io.ComfyNode):
    """All settings that an acceleration preset sets."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MultiTalkAccelerationOptions",
            display_name="MultiTalk Acceleration Options",
            search_aliases=["teacache", "magcache", "easycache", "sage attention", "compile"],
            category=CATEGORY,
            description="Replaces the sampler's acceleration preset by single knobs.",
            inputs=[
                sockets.Options.Input("options", optional=True, tooltip="Other options, to set these beside them."),
                io.Combo.Input(
                    "cache",
                    options=CacheKind,
                    default=CacheKind.NONE,
                    tooltip="Which steps reuse what an earlier one has computed; for 7 steps or more.",
                ),
                io.Float.Input(
                    "threshold",
                    default=0.0,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    tooltip="How much the cache lets pass before it runs a step again; 0 takes its own default. The "
                    "Taylor forecast has none.",
                ),
                io.Int.Input(
                    "warmup",
                    default=AccelerationOptions.warmup,
                    min=1,
                    max=100,
                    tooltip="First steps that are always run.",
                ),
                io.Int.Input(
                    "guidance_every",
                    default=AccelerationOptions.guidance_every,
                    min=1,
                    max=10,
                    tooltip="Runs the guidance's passes every n-th step and keeps their difference in between.",
                ),
                io.Float.Input(
                    "guidance_until",
                    default=AccelerationOptions.guidance_until,
                    min=0.05,
                    max=1.0,
                    step=0.05,
                    tooltip="Share of the steps after which the guidance's passes rest and their difference stays.",
                ),
                io.Combo.Input(
                    "attention",
                    options=AttentionKernel,
                    default=AttentionKernel.AUTO,
                    tooltip="The attention kernel; one that fails its probe is replaced and the log says so.",
                ),
                io.Combo.Input(
                    "compile",
                    options=Compile,
                    default=AccelerationOptions.compile,
                    tooltip="torch.compile of the blocks: a minute at the first step, then faster. Auto compiles on a "
                    "GPU, in runs of more than 8 steps.",
                ),
                io.Boolean.Input(
                    "skip_tail",
                    default=False,
                    tooltip="Leaves out the last step next to zero noise; for few-step LoRAs.",
                ),
                io.Boolean.Input(
                    "projected_guidance",
                    default=False,
                    tooltip="Adaptive projected guidance (APG), against oversaturated colours.",
                ),
                io.Int.Input(
                    "interval",
                    default=AccelerationOptions.interval,
                    min=2,
                    max=50,
                    tooltip="The Taylor forecast runs every n-th step; the other caches decide by themselves.",
                ),
                io.Boolean.Input(
                    "fp8_products",
                    default=AccelerationOptions.fp8_products,
                    tooltip="Multiplies float8 weights as they are stored, on cards from the RTX 40 series on: faster, "
                    "with activations rounded to float8.",
                ),
                io.Combo.Input(
                    "sampler",
                    options=[AUTO, *(kind.value for kind in SamplerKind)],
                    default=AUTO,
                    optional=True,
                    tooltip="euler follows the velocity; renoise draws fresh noise at every step, which FlashTalk was "
                    "distilled to. Auto takes the model's.",
                ),
            ],
            outputs=[sockets.Options.Output(display_name="sampler_options")],
        )

    @classmethod
    def execute(
        cls,
        cache: str,
        threshold: float,
        warmup: int,
        guidance_every: int,
        guidance_until: float,
        attention: str,
        compile: str,
        skip_tail: bool,
        projected_guidance: bool,
        interval: int,
        fp8_products: bool = AccelerationOptions.fp8_products,
        options: SamplerOptions | None = None,
        sampler: str = AUTO,
    ) -> io.NodeOutput:
        acceleration = AccelerationOptions(
            cache=CacheKind(cache),
            threshold=threshold or None,
            warmup=warmup,
            interval=interval,
            guidance_every=guidance_every,
            guidance_until=guidance_until,
            attention=AttentionKernel(attention),
            compile=Compile(compile),
            fp8_products=fp8_products,
        )
        sampler_options = (options or SamplerOptions()).with_choices(
            skip_tail=skip_tail or None,
            projected=projected_guidance,
            sampler=None if sampler == AUTO else SamplerKind(sampler),
        )
        return io.NodeOutput(replace(sampler_options, acceleration=acceleration))


class MultiTalkDevices(io.ComfyNode):
    """Several devices that sample one clip together.

    Their processes are kept warm as long as ComfyUI keeps this node's output: its button that frees models and node
    cache ends them too. Between runs they hold no weights on the devices, only what CUDA takes for itself.
    """

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MultiTalkDevices",
            display_name="MultiTalk Devices",
            search_aliases=["multi gpu", "multigpu", "several gpus", "ulysses", "parallel", "xdit"],
            category=CATEGORY,
            description="Samples each clip on several GPUs at once, in processes of their own beside ComfyUI.",
            inputs=[
                sockets.Options.Input("options", optional=True, tooltip="Other options, to set these beside them."),
                io.String.Input(
                    "devices",
                    default="cuda:0,cuda:1",
                    tooltip="GPUs of one kind, separated by commas; one alone samples in ComfyUI as without this node.",
                ),
                io.Combo.Input(
                    "split",
                    options=Split,
                    default=Split.AUTO,
                    tooltip="What each takes: guidance is whole passes, for slow connections, unequal cards and "
                    "Windows; tokens is a share of each frame, for any number; auto counts which is faster.",
                ),
            ],
            outputs=[sockets.Options.Output(display_name="sampler_options")],
        )

    @classmethod
    def execute(cls, devices: str, split: str, options: SamplerOptions | None = None) -> io.NodeOutput:
        names = tuple(name.strip() for name in devices.split(",") if name.strip())
        ranks = None
        if len(names) > 1:
            from ..pipeline.parallel.ranks import Ranks  # imports diffusers, which takes seconds

            ranks = Ranks(names, Split(split))
        return io.NodeOutput(replace(options or SamplerOptions(), ranks=ranks))
