"""All that a card's owner can measure in ten minutes: ceilings, forwards, kernels, VAE, streaming, a 4-step clip.

Weights are made up, so nothing is downloaded. Forwards are of a few blocks and stand for the 40 of the published
network; beside each stands the time that the card's own ceilings allow for its FLOPs. `docs/performance.md` has the
estimates for cards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from math import nan
from statistics import median

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from torch import Tensor, nn
from torch.nn.functional import linear

from pipeline.acceleration.attention_kernels import AttentionKernel, find_kernel
from pipeline.acceleration.compilation import compiled, compiler_failure
from pipeline.acceleration.fp8_products import FP8, find_product, fp8_products
from pipeline.acceleration.presets import AccelerationOptions
from pipeline.audio.embeds import AudioEmbeds
from pipeline.conditioning.conditioning import Conditioning
from pipeline.config import GenerationConfig, Recipe
from pipeline.generate import generate
from pipeline.generation.run_spec import make_run_spec
from pipeline.host import TorchHost
from pipeline.memory.placement import MemoryConfig, placed
from pipeline.models.transformer.model import MultiTalkTransformer
from pipeline.models.vae.video_vae import VideoVae
from pipeline.sampling.guidance import Pass
from pipeline.shapes import VAE_STRIDE_SPACE, LatentSize, num_video_frames
from pipeline.weights.gguf import Blocks
from pipeline.weights.quantization import Numbers, PackedMatrix, QuantizedLinear, to_bytes

from .measure import PeakMemory, Settings
from .report import Row
from .sizes import Size, random_inputs, random_latents

PUBLISHED_BLOCKS = 40
BLOCKS = 4  # of them that are timed; four in bfloat16 are 3.7 GB
SIZES = {
    "480p": Size(5120, BLOCKS, 40, 13824, LatentSize.of_video(81, 480, 832)),
    "720p": Size(5120, BLOCKS, 40, 13824, LatentSize.of_video(81, 720, 1280)),
    "smoke": Size(256, 2, 2, 512, LatentSize(2, 4, 4), narrow=True),
}
PACKAGINGS = ("bf16", "fp8", "Q4_K")
Q4K_VALUES, Q4K_BYTES = 256, 144
TIMESTEP, STEPS = 500.0, 4
WEIGHT_STD = 0.02


@dataclass(frozen=True)
class Ceilings:
    """The most that this card does a second, measured: FLOPs of matrix products and of attention, bytes of copies."""

    matmul: float
    attention: float
    copy: float


def run(settings: Settings) -> Iterator[Row]:
    """Rows of each part, the ceilings first."""
    for name in settings.sizes or ("480p", "720p"):
        size = SIZES[name]
        ceilings = yield from _ceilings(name, size, settings)
        yield from _attention(name, size, settings)
        for packaging in PACKAGINGS:
            yield from _forwards(name, size, packaging, ceilings, settings)
        yield from _vae(name, size, settings)
        yield from _clip(name, size, settings)


def flops(size: Size) -> tuple[float, float]:
    """FLOPs of `size.layers` blocks: of matrix products, and of attention to the video, prompt, picture and voice."""
    n, width = size.latents.num_tokens, size.width
    return size.layers * 2.0 * n * width * (8 * width + 2 * size.ffn), size.layers * 4.0 * n * (n + 801) * width


def _ceilings(name: str, size: Size, settings: Settings) -> Iterator[Row]:
    n, width, device = size.latents.num_tokens, size.width, settings.device
    x, weight = (torch.randn(shape, device=device).to(settings.dtype) for shape in ((n, width), (size.ffn, width)))
    product_flops = 2.0 * n * width * size.ffn
    seconds, _ = _time(partial(linear, x, weight), settings)
    yield _ceiling(name, f"product in {settings.dtype}", seconds, "TFLOP/s", product_flops / 1e12)
    matmul = product_flops / seconds
    product = find_product(device)
    if product is not None:
        stored, scale = weight.to(FP8), torch.ones(size.ffn, 1, device=device)
        seconds, _ = _time(partial(product, x.bfloat16(), stored, scale, None), settings)
        yield _ceiling(name, "product in float8, rounding included", seconds, "TFLOP/s", product_flops / 1e12)
    seconds, _ = _time(x.clone, settings)
    copy = 2 * x.nbytes / seconds
    yield _ceiling(name, "copy on the device", seconds, "GB/s", 2 * x.nbytes / 1e9)
    if device.type == "cuda":
        host = torch.empty_like(x, device="cpu").pin_memory()
        seconds, _ = _time(partial(host.to, device, non_blocking=True), settings)
        yield _ceiling(name, "copy from pinned memory", seconds, "GB/s", x.nbytes / 1e9)
    query = torch.randn(1, size.heads, n, width // size.heads, device=device).to(settings.dtype)
    seconds, _ = _time(partial(_kernel(AttentionKernel.AUTO, size, settings), query, query, query), settings)
    return Ceilings(matmul, 4.0 * n * n * width / seconds, copy)


def _attention(name: str, size: Size, settings: Settings) -> Iterator[Row]:
    n, width = size.latents.num_tokens, size.width
    query = torch.randn(1, size.heads, n, width // size.heads, device=settings.device).to(settings.dtype)
    replaced = _kernel(AttentionKernel.MATH, size, settings)
    for kernel in AttentionKernel:
        attend = _kernel(kernel, size, settings)
        if kernel is not AttentionKernel.MATH and attend is replaced:
            yield {"part": "ceiling", "case": f"{name}, attention, {kernel.value}: not on this machine"}
        elif kernel is not AttentionKernel.MATH:  # which takes minutes at true size
            seconds, _ = _time(partial(attend, query, query, query), settings)
            yield _ceiling(name, f"attention, {kernel.value}", seconds, "TFLOP/s", 4e-12 * n * n * width)


def _kernel(kernel: AttentionKernel, size: Size, settings: Settings) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return find_kernel(kernel, settings.device, settings.dtype, size.width // size.heads)


def _forwards(name: str, size: Size, packaging: str, ceilings: Ceilings, settings: Settings) -> Iterator[Row]:
    """Forwards of one packaging: eager, with float8 products, compiled, streamed."""
    transformer = packed_transformer(size, packaging, settings)
    transformer.set_attention(_kernel(AttentionKernel.AUTO, size, settings))
    products, attention = flops(size)
    floor_s = (products / ceilings.matmul + attention / ceilings.attention) * PUBLISHED_BLOCKS / size.layers
    case = partial(_forward_row, name, size, packaging, transformer, floor_s, settings)
    yield case("eager")
    if packaging == "fp8" and find_product(settings.device) is not None:
        with fp8_products(transformer, settings.device):
            yield case("float8 products")
    if compiler_failure(settings.device) is None:
        with compiled(transformer, settings.device):
            yield case("compiled")
    transformer.to("cpu")
    with placed(transformer, MemoryConfig(resident_blocks=0), size.latents, TorchHost(settings.device)) as placement:
        placement.place()
        yield case("streamed")


def _forward_row(
    name: str, size: Size, packaging: str, transformer: MultiTalkTransformer, floor_s: float, settings: Settings,
    way: str,
) -> Row:  # fmt: skip
    with torch.device(settings.device):
        inputs = random_inputs(transformer, size)[Pass.COND].pass_inputs(transformer)
        latents = random_latents(size, settings.device)
    seconds, peak_mb = _time(partial(transformer, latents, TIMESTEP, inputs), settings)
    seconds *= PUBLISHED_BLOCKS / size.layers
    return {
        "part": "forward",
        "case": f"{name}, {packaging}, {way}",
        "seconds": seconds,
        "by the ceilings, s": floor_s,
        "seconds / ceilings": seconds / floor_s,
        "work, GB": peak_mb / 1e3,
    }


def _vae(name: str, size: Size, settings: Settings) -> Iterator[Row]:
    for dtype in (torch.bfloat16, torch.float32):
        vae = random_vae(size, dtype, settings)
        frames = torch.zeros(3, 1, size.latents.h * VAE_STRIDE_SPACE, size.latents.w * VAE_STRIDE_SPACE)
        works = {"encode 1 frame and grey": partial(vae.encode_padded, frames, num_video_frames(size.latents.t)),
                 "decode": partial(vae.decode_all, torch.zeros(size.latents.shape))}  # fmt: skip
        for work, function in works.items():
            seconds, peak_mb = _time(function, settings)
            yield {"part": "VAE", "case": f"{name}, {work}, {dtype}", "seconds": seconds, "work, GB": peak_mb / 1e3}


def _clip(name: str, size: Size, settings: Settings) -> Iterator[Row]:
    """One window in four steps without guidance, from an encoded picture and voice to frames."""
    transformer = packed_transformer(size, "fp8", settings).to("cpu")
    config, num_frames = transformer.config, num_video_frames(size.latents.t)
    height, width = size.latents.h * VAE_STRIDE_SPACE, size.latents.w * VAE_STRIDE_SPACE
    prompt = torch.zeros(min(60, config.text_len), config.text_dim)
    conditioning = Conditioning(
        source=torch.randint(0, 256, (1, height, width, 3), dtype=torch.uint8),
        prompt_embeds=(prompt,),
        negative_embeds=prompt,
        vae=random_vae(size, torch.bfloat16 if settings.device.type == "cuda" else torch.float32, settings),
        image_embeds=torch.zeros(257, config.image_dim),
    )
    conditioning.networks[0].to("cpu")
    audio = AudioEmbeds(torch.zeros(1, num_frames + 10, *config.audio_features), num_frames)
    choices = GenerationConfig(num_frames=num_frames, steps=STEPS, text_scale=1.0, audio_scale=1.0)
    options = AccelerationOptions(attention=AttentionKernel.FAST, fp8_products=True)
    spec = make_run_spec(choices, Recipe.MULTITALK, (height, width), num_frames, acceleration=options)

    def render() -> Tensor:
        return torch.cat(list(generate(transformer, audio, conditioning, spec, TorchHost(settings.device))), 1)

    seconds, peak_mb = _time(render, settings)
    case = f"{name}, {num_frames} frames, {STEPS} steps, fp8, {size.layers} of {PUBLISHED_BLOCKS} blocks"
    yield {"part": "clip", "case": case, "seconds": seconds, "work, GB": peak_mb / 1e3}


def packed_transformer(size: Size, packaging: str, settings: Settings) -> MultiTalkTransformer:
    """A transformer with random weights, its blocks' matrices packed."""
    with torch.device("meta"):
        transformer = MultiTalkTransformer(
            num_attention_heads=size.heads,
            attention_head_dim=size.width // size.heads,
            ffn_dim=size.ffn,
            num_layers=size.layers,
        )
    like = {"dtype": settings.dtype, "device": settings.device}
    weights = {name: torch.empty(part.shape, **like) for name, part in transformer.state_dict().items()}
    transformer.load_state_dict({name: part.normal_(std=WEIGHT_STD) for name, part in weights.items()}, assign=True)
    transformer.eval().requires_grad_(False)
    if packaging == "bf16":
        return transformer
    for path, layer in list(transformer.named_modules()):
        if path.startswith("blocks.") and type(layer) is nn.Linear and not layer.in_features % Q4K_VALUES:
            shape, packed = (layer.out_features, layer.in_features), _packed(layer, packaging)
            transformer.set_submodule(path, QuantizedLinear(packed, shape, layer.bias, settings.dtype))
    return transformer


def _packed(layer: nn.Linear, packaging: str) -> PackedMatrix:
    if packaging == "fp8":
        scale = torch.ones(1, device=layer.weight.device)
        return PackedMatrix(to_bytes(layer.weight.data.to(FP8)), Numbers(FP8), to_bytes(scale))
    row_bytes = layer.in_features // Q4K_VALUES * Q4K_BYTES
    zeros = torch.zeros(layer.out_features, row_bytes, dtype=torch.uint8, device=layer.weight.device)
    return PackedMatrix(zeros, Blocks.of("Q4_K"))


def random_vae(size: Size, dtype: torch.dtype, settings: Settings) -> VideoVae:
    """Wan's VAE, or a narrow one beside a narrow transformer."""
    with torch.device(settings.device):
        return VideoVae(AutoencoderKLWan(base_dim=2 if size.narrow else 96).eval().to(dtype))


def _time(work: Callable[[], object], settings: Settings) -> tuple[float, float]:
    """Seconds, the median of the rounds after a first one that is not counted, and the peak in MB."""
    work()
    peak, seconds = PeakMemory(settings.device), []
    for _ in range(settings.rounds):
        start_s = settings.clock()
        work()
        seconds.append(settings.clock() - start_s)
    return median(seconds), peak.megabytes() if settings.device.type == "cuda" else nan


def _ceiling(name: str, case: str, seconds: float, unit: str, amount: float) -> Row:
    return {"part": "ceiling", "case": f"{name}, {case}", "seconds": seconds, unit: amount / max(seconds, 1e-9)}
