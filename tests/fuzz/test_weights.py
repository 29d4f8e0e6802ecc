"""Damaged and hostile weights files: refused in a sentence, without running their code or following their paths."""

import json
import math
import os
import pickle
import struct
from collections import OrderedDict
from functools import partial

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from multitalk_pack.benchmarks.tiny_weights import write_tiny
from multitalk_pack.pipeline.errors import Problems
from multitalk_pack.pipeline.model_files import ModelFiles
from multitalk_pack.pipeline.weights import build, catalog
from multitalk_pack.pipeline.weights.checkpoint import open_source
from multitalk_pack.pipeline.weights.fit import check_weights
from multitalk_pack.pipeline.weights.lora import LoraStack, check_lora
from support.fuzz import MONITOR, fuzzed, refuses_in_words

CHECKS = (
    catalog.check_transformer,
    catalog.check_vae,
    catalog.check_text_encoder,
    catalog.check_image_encoder,
    catalog.check_audio_encoder,
    partial(check_lora, strength=1.0, weights=None),
)
LOADERS = {
    "vae": build.load_vae,
    "text_encoder": build.load_text_encoder,
    "image_encoder": build.load_image_encoder,
    "audio_encoder": build.load_audio_encoder,
}
NAMES = (
    "patch_embedding.weight", "blocks.0.self_attn.q.weight", "blocks.0.cross_attn.k_img.weight", "scaled_fp8",
    "audio_proj.proj1.weight", "audio_proj.norm.weight", "blocks.0.audio_cross_attn.kv_linear.weight",
    "blocks.0.audio_cross_attn.q_linear.bias", "blocks.0.self_attn.q.scale_weight", "blocks.0.ffn.0.comfy_quant",
    "conv2.weight", "decoder.conv1.weight", "shared.weight", "encoder.final_layer_norm.weight", "spiece_model",
    "visual.pos_embedding", "visual.cls_embedding", "feature_extractor.conv_layers.0.conv.weight",
    "encoder.layer_norm.bias", "encoder.pos_conv_embed.conv.weight_g", "blocks.0.self_attn.q.lora_down.weight",
    "blocks.0.self_attn.q.lora_up.weight", "blocks.0.self_attn.q.alpha",
)  # fmt: skip
NUMBERS = st.one_of(
    st.integers(-2, 40), st.sampled_from([2**31, 2**63, 2**64, -(2**63), 10**30]), st.floats(), st.none(), st.booleans()
)
JSON = st.recursive(
    st.one_of(NUMBERS, st.text(max_size=8)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "F16", "F8_E4M3", "U8", "I8", "I64", "BOOL", "F4", ""]) | JSON,
        "shape": st.lists(NUMBERS, max_size=5) | JSON,
        "data_offsets": st.lists(NUMBERS, max_size=3) | JSON,
    },
)


def fitting(shape, dtype, begin):
    """A field whose bytes are as many as its shape says."""
    sizes = {"F32": 4, "F16": 2, "F8_E4M3": 1, "U8": 1, "I8": 1}
    length = sizes[dtype]
    for side in shape:
        length *= side
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, begin + length]}


FITTING = st.builds(
    fitting,
    st.lists(st.integers(0, 6), max_size=5),
    st.sampled_from(["F32", "F16", "F8_E4M3", "U8", "I8"]),
    st.integers(0, 64),
)
METADATA = st.dictionaries(
    st.sampled_from(["_quantization_metadata", "num_heads", "ss_network_module", "x", "lora_adapter_metadata", "alpha",
                     "rank", "transformer.lora_alpha", "transformer.r"]),
    st.text(max_size=12) | JSON | st.builds(json.dumps, JSON),
)  # fmt: skip
HEADERS = st.builds(
    lambda tensors, metadata: tensors | ({} if metadata is None else {"__metadata__": metadata}),
    st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=12), FITTING | FIELDS | JSON, max_size=8),
    st.none() | METADATA | JSON,
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny"))


def safetensors(header, body=bytes(4096)):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def check_all(path):
    """Every check of a file before its weights are needed, and every tensor of it."""
    for check in CHECKS:
        refuses_in_words(check, path)
    source = refuses_in_words(open_source, path)
    for key in source.entries if source else ():
        refuses_in_words(source.get, key)


@fuzzed
@given(header=HEADERS)
@example(header={"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "__metadata__": [1]})
def test_a_safetensors_header_of_any_content(header, tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(safetensors(header))
    check_all(path)


@fuzzed
@given(length=st.integers(0, 2**64 - 1), text=st.binary(max_size=64))
@example(length=2**63, text=b"{}")
def test_a_safetensors_length_of_any_size(length, text, tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", length) + text)
    check_all(path)


@fuzzed
@given(start=st.sampled_from([b"", b"GGUF", b"PK\x03\x04", b"\x80\x02", b"\x08\0\0\0\0\0\0\0{"]), rest=st.binary())
def test_any_bytes_under_any_ending(start, rest, tmp_path):
    for ending in ("safetensors", "gguf", "pth"):
        path = tmp_path / f"w.{ending}"
        path.write_bytes(start + rest)
        check_all(path)


def gguf(fields, tensors, version=3, counts=None, body=bytes(512)):
    """A GGUF file from (name, kind, value bytes) and (name, shape, kind, offset)."""
    num_tensors, num_fields = counts or (len(tensors), len(fields))
    data = b"GGUF" + struct.pack("<IQQ", version, num_tensors % 2**64, num_fields % 2**64)
    for name, kind, value in fields:
        data += struct.pack("<Q", len(name)) + name + struct.pack("<I", kind) + value
    for name, shape, kind, offset in tensors:
        data += struct.pack("<Q", len(name)) + name + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        data += struct.pack("<IQ", kind, offset)
    return data + body


GGUF_NAMES = st.sampled_from([name.encode() for name in NAMES] + [b"token_embd.weight", b"enc.blk.0.attn_q.weight"])
GGUF_FIELDS = st.tuples(
    st.sampled_from([b"general.alignment", b"comfy.gguf.orig_shape.conv2.weight", b"tokenizer.ggml.tokens", b"x"]),
    st.integers(0, 14),
    st.binary(max_size=24) | st.builds(lambda n: struct.pack("<Q", n), st.integers(0, 2**64 - 1)),
)
GGUF_TENSORS = st.tuples(
    GGUF_NAMES,
    st.lists(st.integers(0, 64) | st.integers(0, 2**64 - 1), max_size=5),
    st.integers(0, 45) | st.integers(0, 2**32 - 1),
    st.integers(0, 64) | st.integers(0, 2**64 - 1),
)


@fuzzed
@given(fields=st.lists(GGUF_FIELDS, max_size=3))
@example(fields=[(b"general.alignment", 4, bytes(4))])
@example(fields=[(b"general.alignment", 8, struct.pack("<Q", 1) + b"a")])
@example(fields=[(b"comfy.gguf.orig_shape.conv2.weight", 4, bytes(4))])
def test_a_gguf_field_of_any_content(fields, tmp_path):
    path = tmp_path / "w.gguf"
    path.write_bytes(gguf(fields, [(b"conv2.weight", [2, 2], 0, 0)]))
    check_all(path)


@fuzzed
@given(
    fields=st.lists(GGUF_FIELDS, max_size=3),
    tensors=st.lists(GGUF_TENSORS, max_size=4),
    version=st.sampled_from([1, 2, 3, 3, 3, 4]),
    counts=st.none() | st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)),
)
@example(fields=[], tensors=[(b"conv2.weight", [2**63, 2**63], 0, 0)], version=3, counts=None)
@example(fields=[], tensors=[(b"conv2.weight", [0, 2**40, 2**40], 0, 0)], version=3, counts=None)
def test_a_gguf_header_of_any_content(fields, tensors, version, counts, tmp_path):
    path = tmp_path / "w.gguf"
    path.write_bytes(gguf(fields, tensors, version, counts))
    check_all(path)


def test_headers_nested_beyond_all_measure(tmp_path):
    path = tmp_path / "w"
    for data in (
        struct.pack("<Q", 200_000) + b'{"a":' * 40_000,
        struct.pack("<Q", 200_002) + b'{"' + b"[" * 200_000,
        gguf([(b"x", 9, struct.pack("<IQ", 9, 1) * 20_000)], []),
    ):
        path.write_bytes(data)
        check_all(path)


def cut_up(data, edits):
    data = bytearray(data)
    for position, change in edits:
        position %= len(data)
        data[position : position + len(change)] = change
    return bytes(data)


EDITS = st.lists(st.tuples(st.integers(0, 2**16), st.binary(min_size=1, max_size=4)), min_size=1, max_size=6)


@fuzzed
@given(part=st.sampled_from(sorted(LOADERS)), edits=EDITS)
def test_a_whole_file_with_bytes_changed_in_its_header(part, edits, tiny, tmp_path):
    original = getattr(tiny, part).read_bytes()
    (length,) = struct.unpack("<Q", original[:8])
    path = tmp_path / "w.safetensors"
    path.write_bytes(original[:8] + cut_up(original[8 : 8 + length], edits) + original[8 + length :])
    refuses_in_words(LOADERS[part], path)


@fuzzed
@given(part=st.sampled_from(sorted([*LOADERS, "transformer"])), data=st.data())
def test_a_whole_file_with_a_tensor_taken_away_renamed_or_of_another_shape(part, data, tiny, tmp_path):
    original = getattr(tiny, part).read_bytes()
    (length,) = struct.unpack("<Q", original[:8])
    header = json.loads(original[8 : 8 + length])
    keys = sorted(set(header) - {"__metadata__"})
    for _ in range(data.draw(st.integers(1, 2))):
        key = data.draw(st.sampled_from(keys))
        field = header.pop(key, None)
        assume(field)
        change = data.draw(st.sampled_from(["drop", "rename", *CHANGES]))
        if change == "rename":
            header[data.draw(st.sampled_from([*keys, *NAMES]))] = field
        elif change in CHANGES:
            header[key] = field | CHANGES[change](field["shape"], *field["data_offsets"])
    load_and_fit(part, safetensors(header, original[8 + length :]), tiny, tmp_path)


CHANGES = {  # other words for a tensor's bytes, from its shape and where they begin and end
    "flat": lambda shape, begin, end: {"shape": [(end - begin) // 4], "dtype": "F32"},
    "square": lambda shape, begin, end: {"shape": [1, *shape]},
    "empty": lambda shape, begin, end: {"shape": [0, *shape], "data_offsets": [begin, begin]},
    "bytes": lambda shape, begin, end: {"shape": [end - begin], "dtype": "U8"},
    "scalar": lambda shape, begin, end: {"shape": [], "dtype": "F32", "data_offsets": [begin, begin + 4]},
}


def load_and_fit(part, content, tiny, folder):
    """Loads a part from `content`, and looks whether it fits the others."""
    path = folder / "w.safetensors"
    path.write_bytes(content)
    if part == "transformer":
        refuses_in_words(build.load_transformer, path, tiny.adapter)
    else:
        refuses_in_words(LOADERS[part], path)
    files = {"base": tiny.transformer, "adapter": tiny.adapter}
    files |= {"base": path} if part == "transformer" else {part: path}
    check_weights(ModelFiles(**files), torch.bfloat16, Problems())


@pytest.mark.parametrize(
    ("part", "key", "change"),
    [
        ("text_encoder", "encoder.block.0.layer.0.SelfAttention.k.weight", "spiece_model"),
        ("text_encoder", "shared.weight", "scalar"),
        ("transformer", "text_embedding.0.weight", "drop"),
        ("transformer", "text_embedding.0.weight", "scalar"),
        ("transformer", "patch_embedding.weight", "drop"),
        ("audio_encoder", "wav2vec2.encoder.layer_norm.bias", "scalar"),
        ("image_encoder", "visual.cls_embedding", "scalar"),
        ("vae", "conv2.weight", "flat"),
    ],
)
def test_files_that_raised_other_errors_once(part, key, change, tiny, tmp_path):
    original = getattr(tiny, part).read_bytes()
    (length,) = struct.unpack("<Q", original[:8])
    header = json.loads(original[8 : 8 + length])
    field = header.pop(next(name for name in (key, key.removeprefix("wav2vec2.")) if name in header))
    if change in CHANGES:
        header[key] = field | CHANGES[change](field["shape"], *field["data_offsets"])
    elif change != "drop":
        header[change] = field
    load_and_fit(part, safetensors(header, original[8 + length :]), tiny, tmp_path)


LAYERS = (
    "diffusion_model.blocks.0.self_attn.q", "blocks.1.ffn.0", "lora_unet_blocks_0_cross_attn_k_img", "blocks.0",
    "blocks.0.norm3", "head.head", "time_embedding.0", "blocks.0.audio_cross_attn.kv_linear", "no.layer",
)  # fmt: skip
ROLES = (
    "lora_down.weight", "lora_up.weight", "lora_A.default.weight", "lora_B.weight", "alpha", "diff", "diff_b", "diff_m",
    "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "lokr_w1", "lokr_w2", "lokr_w1_a", "lokr_w1_b", "lokr_w2_a",
    "lokr_w2_b", "lokr_t2", "dora_scale", "lora_A.name.weight", "lora_B.name.weight", "oft_blocks", "a1.weight",
)  # fmt: skip
LORA_SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 4, 6, 16, 64, 256, 512]), max_size=4).filter(
    lambda shape: math.prod(shape) <= 2**22  # the test writes the numbers
)


@pytest.fixture(scope="module")
def network(tiny):
    """The transformer's headers, and itself."""
    return catalog.transformer_weights(tiny.transformer, tiny.adapter)[0], build.load_transformer(
        tiny.transformer, tiny.adapter
    )


@fuzzed
@given(
    shapes=st.dictionaries(st.tuples(st.sampled_from(LAYERS), st.sampled_from(ROLES)), LORA_SHAPES, max_size=6),
    dtype=st.sampled_from(["F32", "F16", "F8_E4M3", "I8"]),
    strength=st.floats(),
    metadata=METADATA,
    fill=st.integers(0, 255),
)
@example(shapes={(LAYERS[0], "lora_down.weight"): [4, 256]}, dtype="F32", strength=1.0, metadata={}, fill=0)
@example(shapes={(LAYERS[0], "lora_down.weight"): [4, 256], (LAYERS[0], "lora_up.weight"): [256, 3]}, dtype="F32",
         strength=1.0, metadata={}, fill=0)  # fmt: skip
@example(shapes={(LAYERS[0], "hada_w1_a"): []}, dtype="F32", strength=1.0, metadata={}, fill=0)
@example(shapes={(LAYERS[0], "lokr_w1"): [2, 2]}, dtype="F32", strength=1.0, metadata={}, fill=0)
@example(shapes={(LAYERS[0], "lora_down.weight"): []}, dtype="F32", strength=0.0,
         metadata={"lora_adapter_metadata": {}}, fill=0)  # fmt: skip
@example(
    shapes={(LAYERS[0], "alpha"): [2], (LAYERS[0], "diff"): [256, 256]}, dtype="F32", strength=1.0, metadata={}, fill=0
)
def test_a_lora_of_any_layers_and_shapes(shapes, dtype, strength, metadata, fill, network, tmp_path):
    header, end = {"__metadata__": metadata}, 0
    for (layer, role), shape in shapes.items():
        header[f"{layer}.{role}"] = fitting(shape, dtype, end)
        end = header[f"{layer}.{role}"]["data_offsets"][1]
    path = tmp_path / "w.safetensors"
    path.write_bytes(safetensors(header, bytes([fill]) * end))
    weights, model = network
    refuses_in_words(check_lora, path, strength, weights)
    stack = LoraStack(model)
    refuses_in_words(stack.replace, [(path, strength)])
    refuses_in_words(stack.replace, [])


class Hostile:
    """Unpickled, it would call `function`."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


TENSOR = torch.ones(2, 2)
STATES = st.recursive(
    st.one_of(
        st.none(), st.integers(), st.text(max_size=5), st.binary(max_size=5), st.just(TENSOR), st.just(torch.nn.Linear),
        st.just(torch.ones(2, 2).to_sparse()), st.just(torch.nn.Parameter(TENSOR)), st.just(OrderedDict(a=TENSOR)),
        st.just(torch.empty(2, device="meta")), st.just(torch.ones(2, dtype=torch.complex64)),
    ),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from([*NAMES, "state_dict", "model"]) | st.integers(), inner, max_size=4),
    max_leaves=6,
)  # fmt: skip


@fuzzed
@given(state=STATES, is_old=st.booleans())
@example(state={1: TENSOR}, is_old=False)
def test_a_pytorch_file_of_any_content(state, is_old, tmp_path):
    path = tmp_path / "w.pth"
    torch.save(state, path, _use_new_zipfile_serialization=not is_old)
    check_all(path)


@pytest.mark.parametrize("packed", [pickle.dumps, None])
@pytest.mark.parametrize("function", [os.system, os.mkdir, exec, eval, open], ids=lambda function: function.__name__)
def test_code_in_a_pytorch_file_does_not_run(function, packed, tmp_path):
    path, marker = tmp_path / "w.pth", tmp_path / "ran"
    command = {os.system: f"touch {marker}", os.mkdir: str(marker), open: str(marker)}.get(
        function, f"__import__('os').mkdir({str(marker)!r})"
    )
    hostile = {"a": Hostile(function, command, *(["w"] if function is open else []))}
    if packed:
        path.write_bytes(packed(hostile, protocol=2))
    else:
        torch.save(hostile, path)
    with MONITOR.on() as monitor:
        check_all(path)
    assert not marker.exists() and not monitor.ran


@fuzzed
@given(data=st.data())
def test_a_pytorch_file_with_bytes_changed(data, tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"conv2.weight": TENSOR}, path, _use_new_zipfile_serialization=data.draw(st.booleans()))
    path.write_bytes(cut_up(path.read_bytes(), data.draw(EDITS)))
    check_all(path)


OUTSIDE = ("../secret.safetensors", "../../secret.safetensors", "{}/secret.safetensors", "a/../../secret.safetensors")


@fuzzed
@given(index=JSON | st.fixed_dictionaries({"weight_map": JSON}))
@example(index={"weight_map": {"a": None}})
@example(index={"weight_map": {}})
@example(index={"weight_map": {"": ""}})
def test_an_index_of_any_content(index, tmp_path):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    check_all(path)


@pytest.mark.parametrize("name", OUTSIDE)
def test_an_index_does_not_lead_out_of_its_folder(name, tmp_path):
    secret, folder = tmp_path / "secret.safetensors", tmp_path / "model"
    secret.write_bytes(safetensors({"conv2.weight": fitting([2], "F32", 0)}))
    folder.mkdir()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name.format(tmp_path)}}))
    with MONITOR.on() as monitor:
        check_all(folder)
    assert secret not in monitor.paths_read


@fuzzed
@given(
    config=JSON
    | st.dictionaries(
        st.sampled_from(["num_heads", "num_attention_heads", "do_normalize", "lora_alpha", "r", "alpha_pattern"]), JSON
    )
)
@example(config={"num_heads": "many"})
@example(config=[])
@example(config={"num_heads": 0})
@example(config={"num_heads": 2**31})
def test_a_config_of_any_content_beside_the_weights(config, tiny, tmp_path):
    path = tmp_path / tiny.audio_encoder.name
    if not path.exists():
        path.symlink_to(tiny.audio_encoder)
    lora = tmp_path / "adapter_model.safetensors"
    lora.write_bytes(safetensors({f"{LAYERS[0]}.lora_A.weight": fitting([2, 2], "F32", 0),
                                  f"{LAYERS[0]}.lora_B.weight": fitting([2, 2], "F32", 16)}))  # fmt: skip
    for name in ("config.json", "preprocessor_config.json", "adapter_config.json"):
        (tmp_path / name).write_text(json.dumps(config))
    refuses_in_words(build.load_audio_encoder, path)
    refuses_in_words(check_lora, lora, 1.0, None)
