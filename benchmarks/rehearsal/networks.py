"""The published networks on a fake card, in the packagings that people have, with inputs of the published sizes."""

from __future__ import annotations

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from torch import Tensor, nn

from pipeline.models.transformer.inputs import PassInputs
from pipeline.models.transformer.model import MultiTalkTransformer
from pipeline.models.vae.video_vae import VideoVae
from pipeline.shapes import LATENT_CHANNELS, MASK_CHANNELS, LatentSize, num_video_frames
from pipeline.weights.gguf import Blocks
from pipeline.weights.lora_layouts import DOWN, UP, LowRank
from pipeline.weights.quantization import Numbers, PackedMatrix, QuantizedLinear

from .fake_card import fake_weights

SIZES = {
    "480p": LatentSize.of_video(81, 480, 832),
    "720p": LatentSize.of_video(81, 720, 1280),
    "smoke": LatentSize.of_video(5, 32, 32),
}
PROMPT_TOKENS, IMAGE_TOKENS = 60, 257


def fake_transformer(
    num_layers: int = 40, packaging: str = "bf16", lora_rank: int = 0, device: str = "cuda"
) -> MultiTalkTransformer:
    """The published transformer.

    Args:
        num_layers: 40 are published; fewer are faster to rehearse.
        packaging: of the blocks' matrices: "bf16", "fp8" (scaled) or a GGUF type such as "Q4_K".
        lora_rank: of a LoRA on every packed layer outside the audio attention; 0 has none.
        device: of the weights.
    """
    with torch.device("meta"):
        transformer = MultiTalkTransformer(num_layers=num_layers).eval()
    if packaging != "bf16":
        _pack(transformer, packaging, lora_rank)
    fake_weights(transformer, device=device)
    return transformer


def fake_vae(dtype: torch.dtype = torch.float32, device: str = "cuda") -> VideoVae:
    """Wan2.1's VAE."""
    with torch.device("meta"):
        model = AutoencoderKLWan().eval()
    fake_weights(model, dtype, device)
    return VideoVae(model)


def fake_inputs(
    transformer: MultiTalkTransformer, size: LatentSize, num_speakers: int = 1, device: str = "cuda"
) -> PassInputs:
    """A pass with a prompt and voices."""

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, device=device)

    masks = empty(num_speakers + 1, size.h, size.w) if num_speakers > 1 else None
    condition = empty(MASK_CHANNELS + LATENT_CHANNELS, size.t, size.h, size.w)
    window = transformer.prepare_window(size, condition, empty(IMAGE_TOKENS, transformer.config.image_dim), masks)
    audio = empty(num_speakers, num_video_frames(size.t), 5, *transformer.config.audio_features)
    return transformer.prepare_pass(window, empty(PROMPT_TOKENS, transformer.config.text_dim), audio)


def fake_latents(size: LatentSize) -> Tensor:
    """`16 t h w` on the card."""
    return torch.empty(size.shape, device="cuda")


def _pack(transformer: MultiTalkTransformer, packaging: str, lora_rank: int) -> None:
    """Replaces the blocks' linear layers by quantised ones, as the loader does."""
    for path, layer in list(transformer.named_modules()):
        if not path.startswith("blocks.") or type(layer) is not nn.Linear:
            continue
        shape = layer.out_features, layer.in_features
        bias = torch.empty(layer.out_features, device="meta")
        quantized = QuantizedLinear(_packed(shape, packaging), shape, bias, torch.bfloat16)
        if lora_rank and "audio" not in path:
            parts = {
                DOWN: torch.empty(lora_rank, layer.in_features, dtype=torch.bfloat16, device="meta"),
                UP: torch.empty(layer.out_features, lora_rank, dtype=torch.bfloat16, device="meta"),
            }
            quantized.deltas.append(LowRank(parts, 1.0))
        transformer.set_submodule(path, quantized)


def _packed(shape: tuple[int, int], packaging: str) -> PackedMatrix:
    rows, columns = shape
    if packaging == "fp8":
        data = torch.empty(rows, columns, dtype=torch.uint8, device="meta")
        return PackedMatrix(data, Numbers(torch.float8_e4m3fn), torch.empty(1, 4, dtype=torch.uint8, device="meta"))
    num_values, num_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[packaging]]
    row_bytes = columns // num_values * num_bytes
    return PackedMatrix(torch.empty(rows, row_bytes, dtype=torch.uint8, device="meta"), Blocks.of(packaging))
