"""Packagings in which users have the transformer's weights, written from one tiny set.

The documentation's table of supported files is made from `PACKAGINGS`.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import torch
from multitalk_pack.pipeline.weights.gguf import Blocks
from multitalk_pack.pipeline.weights.key_maps import rename_transformer
from safetensors.torch import save_file
from torch import Tensor

State = dict[str, Tensor]
WeightPaths = tuple[Path, Path | None, State]  # base, adapter, and the numbers that are in the files

HALF_OFFSETS = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_XS": (0,),
                "IQ4_NL": (0,)}  # fmt: skip


@dataclass(frozen=True)
class Packaging:
    """One packaging: its name, who publishes it, and a writer of it."""

    name: str
    publisher: str
    write: Callable[[State, State, Path], WeightPaths]


def is_block_matrix(key: str, tensor: Tensor) -> bool:
    """The matrices that quantisers pack: the big matrices."""
    return tensor.ndim == 2 and key.startswith("blocks.")


def plain(dtype: torch.dtype, prefix: str = ""):
    """One file of one dtype."""

    def write(base: State, audio: State, folder: Path) -> WeightPaths:
        stored = [{prefix + key: tensor.to(dtype) for key, tensor in state.items()} for state in (base, audio)]
        return *_two(stored, folder), _floats({k.removeprefix(prefix): v for s in stored for k, v in s.items()})

    return write


def shards(base: State, audio: State, folder: Path) -> WeightPaths:
    """Wan's own shards with their index, the adapter beside them."""
    names = [f"diffusion_pytorch_model-{number:05d}-of-00003.safetensors" for number in (1, 2, 3)]
    _write_shards(base, folder, names)
    save_file(audio, folder / "multitalk.safetensors")
    return folder / "diffusion_pytorch_model.safetensors.index.json", folder / "multitalk.safetensors", base | audio


def one_shard_of_several(base: State, audio: State, folder: Path) -> WeightPaths:
    """A user picks the second shard, without an index."""
    index, adapter, numbers = shards(base, audio, folder)
    index.unlink()
    return folder / "diffusion_pytorch_model-00002-of-00003.safetensors", adapter, numbers


def published_index(base: State, audio: State, folder: Path) -> WeightPaths:
    """MultiTalk's index: it leads to Wan's shards and to the audio weights."""
    index, _, numbers = shards(base, audio, folder)
    fields = json.loads(index.read_text())
    fields["weight_map"] |= dict.fromkeys(audio, "multitalk.safetensors")
    index.write_text(json.dumps(fields))
    return folder, None, numbers


def diffusers_folder(base: State, audio: State, folder: Path) -> WeightPaths:
    """A diffusers pipeline, of which the transformer is a folder."""
    (folder / "transformer").mkdir()
    names = [f"diffusion_pytorch_model-{number:05d}-of-00002.safetensors" for number in (1, 2)]
    _write_shards({rename_transformer(key): tensor for key, tensor in base.items()}, folder / "transformer", names)
    heads = {"_class_name": "WanTransformer3DModel", "num_attention_heads": len(base["patch_embedding.bias"]) // 128}
    (folder / "transformer" / "config.json").write_text(json.dumps(heads))
    save_file(audio, folder / "multitalk.safetensors")
    return folder, folder / "multitalk.safetensors", base | audio


def merged(base: State, audio: State, folder: Path) -> WeightPaths:
    """Base and audio weights in one file."""
    save_file(base | audio, folder / "merged.safetensors")
    return folder / "merged.safetensors", None, base | audio


def block_files(base: State, audio: State, folder: Path) -> WeightPaths:
    """LightX2V's folder: a file for each block and one for the rest."""
    place = folder / "blocks"
    place.mkdir()
    parts: dict[str, State] = {}
    for key, tensor in base.items():
        name = f"block_{key.split('.')[1]}" if key.startswith("blocks.") else "non_block"
        parts.setdefault(name, {})[key] = tensor
    for name, part in parts.items():
        save_file(part, place / f"{name}.safetensors")
    save_file(audio, folder / "audio.safetensors")
    return place, folder / "audio.safetensors", base | audio


def pickled(wrapped: bool, zipped: bool = True):
    """A `.pth` or `.bin`, perhaps with its weights under `state_dict`, perhaps in torch's older format."""

    def write(base: State, audio: State, folder: Path) -> WeightPaths:
        for name, state in (("base.pth", base), ("audio.pth", audio)):
            torch.save({"state_dict": state} if wrapped else state, folder / name,
                       _use_new_zipfile_serialization=zipped)  # fmt: skip
        return folder / "base.pth", folder / "audio.pth", base | audio

    return write


def fp8_everywhere(base: State, audio: State, folder: Path) -> WeightPaths:
    """Every tensor cast, vectors too."""
    stored = [{key: tensor.to(torch.float8_e4m3fn) for key, tensor in state.items()} for state in (base, audio)]
    return *_two(stored, folder), _floats(stored[0] | stored[1])


def fp8_matrices(dtype: torch.dtype):
    """The blocks' matrices cast, the rest float32."""

    def write(base: State, audio: State, folder: Path) -> WeightPaths:
        stored = [{k: t.to(dtype) if is_block_matrix(k, t) else t for k, t in s.items()} for s in (base, audio)]
        return *_two(stored, folder), _floats(stored[0] | stored[1])

    return write


def scaled(dtype: torch.dtype, per_row: bool, weight: str, scale: str, marker: bool, extras: tuple[str, ...] = ()):
    """The blocks' matrices in 8 bits with scales, the rest float16; names as each program chose them."""

    def write(base: State, audio: State, folder: Path) -> WeightPaths:
        numbers, stored = {}, []
        for state in (base, audio):
            file = {"scaled_fp8": torch.zeros(2, dtype=dtype)} if marker else {}
            for key, tensor in state.items():
                if not is_block_matrix(key, tensor):
                    file[key] = tensor.half()
                    numbers[key] = file[key].float()
                    continue
                packed, factor = quantize(tensor, dtype, per_row)
                path = key.removesuffix(".weight")
                file[path + weight], file[path + scale] = packed, factor
                file |= {path + extra: torch.ones(()) for extra in extras}
                numbers[key] = packed.float() * factor.reshape(-1, 1)
            stored.append(file)
        return *_two(stored, folder), numbers

    return write


def comfy_mixed(in_header: bool, prefix: str = "", layer_prefix: str = ""):
    """ComfyUI's mixed precision: fp8 and ConvRot's int8 side by side, named by tensors or in the header.

    The header may have other names of the layers than the keys.
    """

    def write(base: State, audio: State, folder: Path) -> WeightPaths:
        numbers, stored, layers = {}, [], {}
        for state in (base, audio):
            file = {}
            for key, tensor in state.items():
                path = key.removesuffix(".weight")
                if not is_block_matrix(key, tensor) or ".audio_cross_attn." in key:
                    file[prefix + key] = numbers[key] = tensor
                    continue
                rotates = ".ffn." in key
                form = {"format": "int8_tensorwise" if rotates else "float8_e4m3fn"}
                if rotates:
                    form |= {"convrot": True, "convrot_groupsize": 64}
                    packed, factor = quantize(rotate(tensor, 64), torch.int8, per_row=True)
                    numbers[key] = rotate(packed.float() * factor.reshape(-1, 1), 64)
                else:
                    packed, factor = quantize(tensor, torch.float8_e4m3fn, per_row=False)
                    numbers[key] = packed.float() * factor
                file[prefix + key], file[f"{prefix}{path}.weight_scale"] = packed, factor
                layers[layer_prefix + path] = form
                if not in_header:
                    file[f"{prefix}{path}.comfy_quant"] = torch.tensor(
                        list(json.dumps(form).encode()), dtype=torch.uint8
                    )
            stored.append(file)
        about = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}
        return *_two(stored, folder, about if in_header else None), numbers

    return write


def gguf_file(kind: str, arch: str = "wan", prefix: str = "", audio_name: str = "audio_proj."):
    """llama.cpp's format: block matrices packed where their rows are whole blocks, vectors F32, other matrices F16."""

    def write(base: State, audio: State, folder: Path) -> WeightPaths:
        numbers = {}
        for name, state in (("base.gguf", base), ("audio.gguf", audio)):
            writer = gguf.GGUFWriter(folder / name, arch)
            for key, tensor in state.items():
                key_in_file = prefix + key.replace("audio_proj.", audio_name)
                numbers[key] = add_to_gguf(writer, key_in_file, tensor, kind if is_block_matrix(key, tensor) else "")
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
        return folder / "base.gguf", folder / "audio.gguf", numbers

    return write


def gguf_base_only(base: State, audio: State, folder: Path) -> WeightPaths:
    """A GGUF base with a safetensors adapter."""
    path, _, numbers = gguf_file("Q8_0")(base, {}, folder)
    save_file(audio, folder / "audio.safetensors")
    return path, folder / "audio.safetensors", numbers | audio


def add_to_gguf(writer: gguf.GGUFWriter, name: str, tensor: Tensor, kind: str) -> Tensor:
    """Writes a tensor as `kind`, or as F32 or F16 where that cannot be; returns the numbers that are in the file."""
    size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][0] if kind else 0
    if not kind or tensor.shape[-1] % size:
        values = tensor.half() if tensor.ndim == 2 else tensor.float()
        writer.add_tensor(name, values.numpy())
        return values.float()
    raw = pack(tensor, kind)
    writer.add_tensor(name, raw, raw_dtype=gguf.GGMLQuantizationType[kind])
    if kind == "BF16":
        return torch.from_numpy(raw).view(torch.bfloat16).float()
    return torch.from_numpy(gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind]))


def pack(tensor: Tensor, kind: str) -> np.ndarray:
    """Rows of blocks; random ones with scales of about the right size where gguf cannot pack."""
    if kind not in HALF_OFFSETS:
        return gguf.quants.quantize(tensor.numpy(), gguf.GGMLQuantizationType[kind])
    values, num_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    random = np.random.default_rng(tensor.numel())
    blocks = random.integers(0, 256, (tensor.numel() // values, num_bytes), dtype=np.uint8)
    for offset in HALF_OFFSETS[kind]:
        scales = (random.normal(size=len(blocks)) * 1e-4).astype(np.float16)
        blocks[:, offset : offset + 2] = scales.view(np.uint8).reshape(-1, 2)
    raw = blocks.reshape(len(tensor), -1)
    assert torch.isfinite(Blocks.of(kind).decode(torch.from_numpy(raw), None, None, torch.float32)).all()
    return raw


def quantize(tensor: Tensor, dtype: torch.dtype, per_row: bool) -> tuple[Tensor, Tensor]:
    """8-bit numbers and their scale: 0-d, or `rows 1`."""
    largest = 127 if dtype is torch.int8 else torch.finfo(dtype).max
    scale = tensor.abs().amax(dim=1, keepdim=True) / largest if per_row else tensor.abs().max() / largest
    scaled_values = tensor / scale
    return (scaled_values.round() if dtype is torch.int8 else scaled_values).to(dtype), scale


def rotate(weight: Tensor, size: int) -> Tensor:
    """ConvRot's turn of groups of `size` columns, by the formula: Kronecker powers of a regular Hadamard matrix."""
    four = torch.ones(4, 4) - 2 * torch.eye(4).flip(0)
    hadamard = four
    while len(hadamard) < size:
        hadamard = torch.kron(hadamard, four)
    return (weight.view(len(weight), -1, size) @ (hadamard / size**0.5)).flatten(1)


def _two(stored: list[State], folder: Path, metadata: dict | None = None) -> tuple[Path, Path]:
    paths = folder / "base.safetensors", folder / "audio.safetensors"
    for path, state in zip(paths, stored, strict=True):
        save_file(state, path, metadata)
    return paths


def _floats(state: State) -> State:
    return {key: tensor.float() for key, tensor in state.items()}


def _write_shards(state: State, folder: Path, names: list[str]) -> None:
    parts = [dict(list(state.items())[number :: len(names)]) for number in range(len(names))]
    for name, part in zip(names, parts, strict=True):
        save_file(part, folder / name)
    index = {"weight_map": {key: name for name, part in zip(names, parts, strict=True) for key in part}}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
PACKAGINGS = (
    Packaging("float32", "multitalk.safetensors, Kijai fp32", plain(torch.float32)),
    Packaging("float16", "Comfy-Org fp16", plain(torch.float16)),
    Packaging("bfloat16", "Comfy-Org bf16", plain(torch.bfloat16)),
    Packaging("float16 saved by ComfyUI", "model.diffusion_model.*", plain(torch.float16, "model.diffusion_model.")),
    Packaging("float32, other prefix", "diffusion_model.*", plain(torch.float32, "diffusion_model.")),
    Packaging("shards with index", "Wan-AI/Wan2.1-I2V-14B-480P", shards),
    Packaging("one shard chosen", "Wan-AI/Wan2.1-I2V-14B-480P", one_shard_of_several),
    Packaging("MultiTalk's index over Wan's shards", "MeiGen-AI/MeiGen-MultiTalk", published_index),
    Packaging("diffusers folder", "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers", diffusers_folder),
    Packaging("base and audio merged", "LightX2V merged models", merged),
    Packaging("a file for each block", "LightX2V block folders", block_files),
    Packaging(".pth", "any", pickled(wrapped=False)),
    Packaging(".pth under state_dict", "any", pickled(wrapped=True)),
    Packaging(".pth of torch's older format", "any", pickled(wrapped=False, zipped=False)),
    Packaging("fp8, every tensor", "Comfy-Org fp8_e4m3fn", fp8_everywhere),
    Packaging("fp8 e4m3 matrices", "Kijai fp8_e4m3fn", fp8_matrices(E4M3)),
    Packaging("fp8 e5m2 matrices", "Kijai fp8_e5m2", fp8_matrices(E5M2)),
    Packaging("fp8 e4m3 scaled", "Comfy-Org and Kijai fp8_e4m3fn_scaled", scaled(E4M3, False, ".weight", ".scale_weight", True, (".scale_input",))),  # noqa: E501
    Packaging("fp8 e5m2 scaled", "Kijai fp8_e5m2_scaled_KJ", scaled(E5M2, False, ".weight", ".scale_weight", True)),
    Packaging("fp8 scaled per row", "LightX2V scaled_fp8_e4m3", scaled(E4M3, True, ".weight", ".weight_scale", False)),
    Packaging("int8 scaled per row", "LightX2V int8", scaled(torch.int8, True, ".weight", ".weight_scale", False)),
    Packaging("quanto int8", "MeiGen-AI quant_models, Wan2GP", scaled(torch.int8, True, ".weight._data", ".weight._scale", False, (".input_scale", ".output_scale"))),  # noqa: E501
    Packaging("quanto fp8", "MeiGen-AI quant_models", scaled(E4M3, True, ".weight._data", ".weight._scale", False, (".input_scale", ".output_scale"))),  # noqa: E501
    Packaging("ComfyUI mixed precision, by tensors", "*_fp8mixed, *_int8_convrot", comfy_mixed(in_header=False)),
    Packaging("ComfyUI mixed precision, by header", "*_fp8mixed, *_int8_convrot", comfy_mixed(in_header=True)),
    Packaging("ComfyUI mixed precision, by header, keys prefixed", "*_fp8mixed, *_int8_convrot", comfy_mixed(True, "model.diffusion_model.")),  # noqa: E501
    Packaging("ComfyUI mixed precision, by header, layers prefixed", "*_fp8mixed, *_int8_convrot", comfy_mixed(True, "", "diffusion_model.")),  # noqa: E501
    *(Packaging(f"GGUF {kind or 'F16'}", "city96, QuantStack", gguf_file(kind))
      for kind in ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS",
                   "BF16", "")),
    Packaging("GGUF, other architecture and prefix", "calcuis", gguf_file("Q8_0", "pig", "model.diffusion_model.")),
    Packaging("GGUF, Kijai's adapter names", "Kijai/WanVideo_comfy_GGUF", gguf_file("Q8_0", "wan", "", "multitalk_audio_proj.")),  # noqa: E501
    Packaging("GGUF base, safetensors adapter", "city96 and MeiGen-AI", gguf_base_only),
)  # fmt: skip
