"""Every trainer's layout acts as if merged in float32; replaced, LoRAs leave the weights as they were, bit for bit."""

import gc
import json
import math
import weakref
from collections import Counter

import pytest
import torch
from multitalk_pack.pipeline.errors import WeightsError
from multitalk_pack.pipeline.models.transformer.model import MultiTalkTransformer
from multitalk_pack.pipeline.weights import build, source
from multitalk_pack.pipeline.weights.build import load_transformer
from multitalk_pack.pipeline.weights.handles import TransformerFiles
from multitalk_pack.pipeline.weights.key_maps import rename_transformer
from multitalk_pack.pipeline.weights.lora import LoraStack
from safetensors.torch import save_file
from support.packagings import E4M3, gguf_file, plain, scaled
from support.tiny_models import adapter_state, base_state, velocity

RANK = 4
LAYERS = ("blocks.0.self_attn.q", "blocks.1.cross_attn.k_img", "blocks.1.ffn.0", "blocks.0.audio_cross_attn.q_linear")
SMALL = 0.02


def random(*shape, seed=0):
    return SMALL * torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def pair(layer):
    """Down and up of a layer."""
    rows, columns = (base_state() | adapter_state())[f"{layer}.weight"].shape
    return random(RANK, columns, seed=len(layer)), random(rows, RANK, seed=2 * len(layer))


def merged(changes, folder):
    """The transformer with changed native weights, loaded from a plain file."""
    state = base_state() | adapter_state()
    save_file({key: (state[key] + changes[key]) if key in changes else state[key] for key in state},
              folder / "merged.safetensors")  # fmt: skip
    return load_transformer(folder / "merged.safetensors", dtype=torch.float32)


def lora_file(state, folder, name="lora.safetensors"):
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, folder / name)
    return folder / name


def put_on(model, path, strength=1.0):
    """The report of one LoRA on a model."""
    stack = LoraStack(model)
    stack.replace([(path, strength)])
    return stack.reports[0]


def load_with(loras, base, adapter=None, dtype=torch.float32):
    """The transformer with LoRAs, files and strengths."""
    model = load_transformer(base, adapter, dtype=dtype)
    LoraStack(model).replace(loras)
    return model


def same(actual, reference):
    return (actual - reference).abs().max() <= 2e-6 * reference.abs().max()


def diffusers(layer):
    return rename_transformer(f"{layer}.weight").removesuffix(".weight")


LAYOUTS = {  # how a trainer writes a layer, the endings of down and up, and the factor that alpha makes
    "native, down/up": ("diffusion_model.{}", ".lora_down.weight", ".lora_up.weight", None),
    "native, A/B": ("diffusion_model.{}", ".lora_A.weight", ".lora_B.weight", None),
    "native with alpha": ("diffusion_model.{}", ".lora_down.weight", ".lora_up.weight", 2.0),
    "no prefix": ("{}", ".lora_down.weight", ".lora_up.weight", None),
    "model.diffusion_model": ("model.diffusion_model.{}", ".lora_A.weight", ".lora_B.weight", None),
    "DiffSynth": ("pipe.dit.{}", ".lora_A.default.weight", ".lora_B.default.weight", None),
    "PEFT": ("base_model.model.{}", ".lora_A.weight", ".lora_B.weight", None),
    "PEFT, named": ("base_model.model.{}", ".lora_A.my_name.weight", ".lora_B.my_name.weight", None),
    "PEFT, default": ("base_model.model.{}", ".lora_A.default.weight", ".lora_B.default.weight", None),
    "musubi-tuner": ("lora_unet_{_}", ".lora_down.weight", ".lora_up.weight", 1.0),
    "Fun rewards": ("lora_unet__{_}", ".lora_down.weight", ".lora_up.weight", 8.0),
    "LyCORIS": ("lycoris_{_}", ".lora_down.weight", ".lora_up.weight", 4.0),
    "transformer + diffusers": ("transformer.{d}", ".lora_A.weight", ".lora_B.weight", None),
    "diffusion_model + diffusers": ("diffusion_model.{d}", ".lora_A.weight", ".lora_B.weight", None),
    "transformer + native": ("transformer.{}", ".lora_A.weight", ".lora_B.weight", None),
    "diffusers, no prefix": ("{d}", ".lora.down.weight", ".lora.up.weight", None),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_applied_as_if_merged(layout, tmp_path, plain_transformer):
    template, down_ending, up_ending, alpha = LAYOUTS[layout]
    state, changes = {}, {}
    for layer in LAYERS:
        down, up = pair(layer)
        path = template.replace("{_}", layer.replace(".", "_")).replace("{d}", diffusers(layer)).replace("{}", layer)
        state |= {path + down_ending: down, path + up_ending: up}
        state |= {f"{path}.alpha": torch.tensor(alpha)} if alpha else {}
        changes[f"{layer}.weight"] = 0.7 * (alpha / RANK if alpha else 1) * up @ down
    report = put_on(plain_transformer, lora_file(state, tmp_path), 0.7)
    assert report.applied == {"layers": len(LAYERS)} and not report.skipped
    assert same(velocity(plain_transformer), velocity(merged(changes, tmp_path)))


def test_differences_act_on_norms_biases_modulation_and_outer_layers(tmp_path, plain_transformer):
    changes = {
        "blocks.0.norm3.weight": random(256), "blocks.0.self_attn.norm_q.weight": random(256, seed=1),
        "blocks.1.self_attn.o.bias": random(256, seed=2), "blocks.1.modulation": random(1, 6, 256),
        "head.modulation": random(1, 2, 256), "head.head.weight": random(64, 256), "time_embedding.0.bias": random(256),
        "patch_embedding.weight": random(256, 36, 1, 2, 2), "blocks.0.ffn.2.weight": random(256, 512),
    }  # fmt: skip
    endings = {"weight": "diff", "bias": "diff_b", "modulation": "diff_m"}
    state = {}
    for key, change in changes.items():
        path, _, leaf = key.rpartition(".")
        state[f"diffusion_model.{path}.{endings[leaf]}"] = change
    report = put_on(plain_transformer, lora_file(state, tmp_path), 0.5)
    assert report.applied == {"layers": 3, "norms": 2, "biases": 2, "modulations": 2}
    half = {key: 0.5 * change for key, change in changes.items()}
    assert same(velocity(plain_transformer), velocity(merged(half, tmp_path)))


def test_a_layer_may_have_a_product_and_a_difference(tmp_path, plain_transformer):
    (down, up), diff, bias = pair(LAYERS[0]), random(256, 256), random(256)
    path = f"diffusion_model.{LAYERS[0]}"
    put_on(plain_transformer, lora_file({
        f"{path}.lora_down.weight": down, f"{path}.lora_up.weight": up, f"{path}.alpha": torch.tensor(2.0),
        f"{path}.diff": diff, f"{path}.diff_b": bias}, tmp_path))  # fmt: skip
    changes = {f"{LAYERS[0]}.weight": up @ down / 2 + diff, f"{LAYERS[0]}.bias": bias}
    assert same(velocity(plain_transformer), velocity(merged(changes, tmp_path)))


def test_outer_layers_take_low_rank_updates(tmp_path, plain_transformer):
    state, changes = {}, {}
    for layer in ("time_projection.1", "head.head", "text_embedding.0", "img_emb.proj.1"):
        down, up = pair(layer)
        state |= {f"diffusion_model.{layer}.lora_down.weight": down, f"diffusion_model.{layer}.lora_up.weight": up}
        changes[f"{layer}.weight"] = up @ down
    put_on(plain_transformer, lora_file(state, tmp_path))
    assert same(velocity(plain_transformer), velocity(merged(changes, tmp_path)))


def test_loha_and_lokr(tmp_path, plain_transformer):
    hada = {f"hada_w{i}_{part}": random(*shape, seed=i) * 20
            for i in (1, 2) for part, shape in (("a", (256, RANK)), ("b", (RANK, 256)))}  # fmt: skip
    kron = {"lokr_w1": random(8, 8), "lokr_w2_a": random(32, RANK) * 20, "lokr_w2_b": random(RANK, 32) * 20}
    state = {f"lycoris_blocks_0_self_attn_q.{name}": tensor for name, tensor in hada.items()}
    state |= {f"lycoris_blocks_0_self_attn_k.{name}": tensor for name, tensor in kron.items()}
    state |= {f"lycoris_blocks_0_self_attn_{x}.alpha": torch.tensor(2.0) for x in "qk"}
    assert put_on(plain_transformer, lora_file(state, tmp_path)).applied == {"layers": 2}
    first = (hada["hada_w1_a"] @ hada["hada_w1_b"]) * (hada["hada_w2_a"] @ hada["hada_w2_b"])
    second = torch.kron(kron["lokr_w1"], kron["lokr_w2_a"] @ kron["lokr_w2_b"])
    changes = {"blocks.0.self_attn.q.weight": first / 2, "blocks.0.self_attn.k.weight": second / 2}
    assert same(velocity(plain_transformer), velocity(merged(changes, tmp_path)))


def factor_of(model, files):
    """The factor of the one update of `LAYERS[0]`."""
    put_on(model, files)
    (update,) = model.get_submodule(diffusers(LAYERS[0])).deltas
    return update.factor


def save_lora(folder, metadata=None, prefix="diffusion_model.", layers=LAYERS[:1], ranks=(RANK,), alpha=None):
    """A LoRA file with metadata in its header."""
    state = {}
    for layer, rank in zip(layers, ranks, strict=True):
        down, up = pair(layer)
        state |= {f"{prefix}{layer}.lora_A.weight": down[:rank], f"{prefix}{layer}.lora_B.weight": up[:, :rank]}
        state |= {} if alpha is None else {f"{prefix}{layer}.alpha": torch.tensor(alpha)}
    folder.mkdir(exist_ok=True)
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, folder / "lora.safetensors", metadata)
    return folder / "lora.safetensors"


DIFFUSERS_HEADER = {"transformer.lora_alpha": 16, "transformer.r": 4}
TWO_RANKS = dict(layers=LAYERS[:2], ranks=(RANK, 2))
HEADERS = {  # metadata of a file of rank 4, the rest of the file, and its factor
    "PEFT's words with a prefix": ({"transformer.lora_alpha": "16", "transformer.r": "4"}, {}, 4.0),
    "alpha and rank": ({"alpha": "8", "rank": "4"}, {}, 2.0),
    "PEFT's words": ({"lora_alpha": "2.0", "r": "4"}, {}, 0.5),
    "as diffusers writes it": ({"lora_adapter_metadata": json.dumps(DIFFUSERS_HEADER)}, {}, 4.0),
    "rank-stabilized": ({"lora_alpha": "6", "r": "4", "use_rslora": "True"}, {}, 3.0),
    "a layer's own alpha": ({"lora_adapter_metadata": json.dumps(
        DIFFUSERS_HEADER | {"transformer.alpha_pattern": {LAYERS[0]: 2}})}, {}, 0.5),
    "a layer's own rank": ({"lora_adapter_metadata": json.dumps(
        DIFFUSERS_HEADER | {"transformer.rank_pattern": {LAYERS[1]: 2}})}, TWO_RANKS, 4.0),
    "tensors win": ({"alpha": "8", "rank": "4"}, dict(alpha=12.0), 3.0),
    "kohya's words alone": ({"ss_network_alpha": "16", "ss_network_dim": "4"}, {}, 1.0),
    "alpha alone": ({"alpha": "8"}, {}, 1.0),
    "mixed ranks": (None, TWO_RANKS, 1.0),
    "mixed ranks of which the header knows one": ({"alpha": "8", "rank": "4"}, TWO_RANKS, 1.0),
    "another rank": ({"alpha": "8", "rank": "16"}, {}, 1.0),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADERS)
def test_alpha_is_taken_from_the_header_where_no_tensor_has_it(name, tmp_path, plain_transformer):
    metadata, file, factor = HEADERS[name]
    assert factor_of(plain_transformer, save_lora(tmp_path, metadata, **file)) == factor


def test_what_the_header_says_of_alpha_is_in_the_report(tmp_path, plain_transformer):
    current, stale = ({"alpha": "8", "rank": rank} for rank in ("4", "16"))
    assert "; alpha 8 from its header;" in str(put_on(plain_transformer, save_lora(tmp_path, current)))
    report = str(put_on(plain_transformer, save_lora(tmp_path, stale)))
    assert "; alpha 8 from its header left out: its layers have other ranks;" in report


@pytest.mark.parametrize("metadata", [{"lora_adapter_metadata": "{"}, {"alpha": "much", "rank": "4"}])
def test_an_alpha_that_cannot_be_read_is_named(metadata, tmp_path, plain_transformer):
    with pytest.raises(WeightsError, match=r"lora.safetensors has a (header|lora_adapter_metadata) "):
        put_on(plain_transformer, save_lora(tmp_path, metadata))


@pytest.mark.parametrize("is_rank_stabilized", [False, True])
@pytest.mark.parametrize("prefix", ["base_model.model.", "diffusion_model.", "transformer.", ""])
def test_pefts_own_configuration_is_honoured(prefix, is_rank_stabilized, tmp_path, plain_transformer):
    path = save_lora(tmp_path / "peft", prefix=prefix)
    config = {"lora_alpha": 6, "use_rslora": is_rank_stabilized}
    (path.parent / "adapter_config.json").write_text(json.dumps(config))
    assert factor_of(plain_transformer, path.parent) == 6 / (math.sqrt(RANK) if is_rank_stabilized else RANK)
    down, up = pair(LAYERS[0])
    changes = {f"{LAYERS[0]}.weight": 6 / (math.sqrt(RANK) if is_rank_stabilized else RANK) * up @ down}
    assert same(velocity(plain_transformer), velocity(merged(changes, tmp_path)))


def test_a_configuration_among_several_loras_is_nobodys(tmp_path, plain_transformer):
    path = save_lora(tmp_path)
    save_lora(tmp_path).rename(tmp_path / "another.safetensors")
    save_lora(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 64}))
    assert factor_of(plain_transformer, path) == 1.0


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("role", ["lora_A.weight", "lora_B.weight", "alpha", "diff_b"])
def test_numbers_that_are_not_finite_are_refused_by_the_files_name(role, number, tmp_path, plain_transformer):
    before, path = velocity(plain_transformer), f"diffusion_model.{LAYERS[0]}"
    down, up = pair(LAYERS[0])
    state = {f"{path}.lora_A.weight": down, f"{path}.lora_B.weight": up, f"{path}.alpha": torch.tensor(4.0),
             f"{path}.diff_b": random(256)}  # fmt: skip
    state[f"{path}.{role}"].view(-1)[-1] = number
    with pytest.raises(WeightsError, match=f"LoRA lora.safetensors has numbers that are NaN or infinite .*{role}"):
        put_on(plain_transformer, lora_file(state, tmp_path))
    assert torch.equal(velocity(plain_transformer), before)


def test_what_does_not_fit_is_skipped_and_said(tmp_path, plain_transformer):
    down, up = pair(LAYERS[0])
    report = put_on(plain_transformer, lora_file({
        f"diffusion_model.{LAYERS[0]}.lora_down.weight": down, f"diffusion_model.{LAYERS[0]}.lora_up.weight": up,
        "diffusion_model.patch_embedding.diff": torch.ones(256, 16, 1, 2, 2),
        "diffusion_model.blocks.7.self_attn.q.diff_b": torch.ones(256)}, tmp_path))  # fmt: skip
    assert str(report) == (
        "LoRA lora.safetensors at 1: 1 layers applied; blocks.7.self_attn.q skipped: this model has no such layer; "
        "patch_embedding.weight skipped: shape 256x16x1x2x2 instead of 256x36x1x2x2; "
        "image-branch layers are not in it, which is normal for a text-to-video LoRA"
    )


def both_loras(tmp_path):
    """Two LoRAs that meet in a matrix, a bias and a norm."""
    files = []
    for number in (1, 2):
        down, up = (number * part for part in pair(LAYERS[0]))
        path = f"diffusion_model.{LAYERS[0]}"
        state = {f"{path}.lora_down.weight": down, f"{path}.lora_up.weight": up}
        state |= {f"{path}.diff_b": random(256, seed=number)}
        state |= {"diffusion_model.blocks.1.norm3.diff": random(256, seed=10 + number)}
        files.append(lora_file(state, tmp_path, f"{number}.safetensors"))
    return files


def bytes_of(model):
    return {key: (tensor.dtype, tensor.clone()) for key, tensor in model.state_dict().items()}


def assert_equal(model, state):
    now = bytes_of(model)
    assert now.keys() == state.keys()
    assert all(now[key][0] is dtype and torch.equal(now[key][1], tensor) for key, (dtype, tensor) in state.items())


@pytest.mark.parametrize("write", [plain(torch.float32), plain(torch.bfloat16), gguf_file("Q8_0"),
                                   scaled(E4M3, False, ".weight", ".scale_weight", True)],
                         ids=["float32", "bfloat16", "GGUF", "fp8"])  # fmt: skip
def test_replaced_loras_leave_nothing_of_themselves(write, tmp_path):
    base, adapter, _ = write(base_state(), adapter_state(), tmp_path)
    first, second = both_loras(tmp_path)
    model = load_transformer(base, adapter)
    clean, clean_types = bytes_of(model), [type(module) for module in model.modules()]
    stack = LoraStack(model)
    for loras in ([(first, 1.0)], [(first, 0.5), (second, 1.0)], [(second, -2.0), (first, 0.5)], [(second, 0.3)]):
        stack.replace(loras)
        assert [report.name for report in stack.reports] == [path.name for path, _ in loras]
        assert_equal(model, bytes_of(load_with(loras, base, adapter, torch.bfloat16)))
    stack.replace([])
    assert_equal(model, clean)
    assert [type(module) for module in model.modules()] == clean_types


def test_a_lora_that_is_refused_leaves_those_that_are_on(tmp_path, plain_transformer):
    first, _ = both_loras(tmp_path)
    stack = LoraStack(plain_transformer)
    stack.replace([(first, 1.0)])
    before = bytes_of(plain_transformer)
    wrong = lora_file({"x.y.lora_down.weight": random(2, 4), "x.y.lora_up.weight": random(4, 2)}, tmp_path)
    for loras in ([(first, 0.5), (wrong, 1.0)], [(first, math.nan)]):
        with pytest.raises(WeightsError):
            stack.replace(loras)
        assert_equal(plain_transformer, before)


@pytest.fixture
def reads(monkeypatch):
    """Counts how often the network is built and each tensor is read."""
    counter = Counter()

    def with_count(name, function):
        def count(*args, **options):
            counter[name or args[1]] += 1
            return function(*args, **options)

        return count

    monkeypatch.setattr(build, "load_transformer", with_count("network", build.load_transformer))
    monkeypatch.setattr(source.MappedFile, "get", with_count("", source.MappedFile.get))
    return counter


def networks():
    """All transformers that are alive."""
    gc.collect()
    return [each for each in gc.get_objects() if type(each) is MultiTalkTransformer]


def test_handles_that_differ_by_their_loras_share_one_network_and_read_each_file_once(tmp_path, reads):
    base, adapter, _ = plain(torch.float32)(base_state(), adapter_state(), tmp_path)
    first, second = both_loras(tmp_path)
    others = len(networks())
    files = TransformerFiles(base, adapter)
    network = weakref.ref(files.transformer)
    with_first = files.with_lora(first, 1.0)
    with_both = with_first.with_lora(second, 1.0)
    weaker = with_first.with_lora(second, 0.5)
    loras_of = {with_first: [(first, 1.0)], with_both: [(first, 1.0), (second, 1.0)],
                weaker: [(first, 1.0), (second, 0.5)], files: []}  # fmt: skip
    for handle, loras in loras_of.items():
        assert handle.transformer is network()
        reference = load_with(loras, base, adapter)
        assert torch.equal(velocity(handle.transformer), velocity(reference))
        del reference
    assert len(networks()) == others + 1
    del handle, files, with_first, with_both, weaker, loras_of
    assert len(networks()) == others and network() is None


def test_another_strength_reads_no_file_again(tmp_path, reads):
    base, adapter, _ = plain(torch.float32)(base_state(), adapter_state(), tmp_path)
    first, second = both_loras(tmp_path)
    files = TransformerFiles(base, adapter)
    for handle in (files.with_lora(first, 1.0), files.with_lora(first, 1.0).with_lora(second, 1.0),
                   files.with_lora(first, 0.5).with_lora(second, 0.7)):  # fmt: skip
        assert handle.transformer is not None
    assert reads.pop("network") == 1
    in_both = [f"diffusion_model.{LAYERS[0]}.{ending}" for ending in ("lora_down.weight", "lora_up.weight", "diff_b")]
    assert all(reads[key] == 2 for key in in_both) and all(reads[key] <= 2 for key in reads)


def test_a_lora_that_was_written_anew_is_read_anew(tmp_path):
    base, adapter, _ = plain(torch.float32)(base_state(), adapter_state(), tmp_path)
    first, second = both_loras(tmp_path)
    files = TransformerFiles(base, adapter).with_lora(first, 1.0)
    before = velocity(files.transformer)
    second.replace(first)
    after = velocity(files.transformer)
    assert not torch.equal(after, before)
    assert torch.equal(after, velocity(load_with([(first, 1.0)], base, adapter)))


@pytest.mark.parametrize("write", [gguf_file("Q8_0"), scaled(E4M3, False, ".weight", ".scale_weight", True)],
                         ids=["GGUF", "fp8"])  # fmt: skip
def test_on_packed_weights_too(write, tmp_path):
    base, adapter, numbers = write(base_state(), adapter_state(), tmp_path)
    down, up = pair(LAYERS[0])
    path = f"diffusion_model.{LAYERS[0]}"
    lora = lora_file({f"{path}.lora_down.weight": down, f"{path}.lora_up.weight": up}, tmp_path)
    model = load_with([(lora, 1.0)], base, adapter)
    numbers = dict(numbers)
    numbers[f"{LAYERS[0]}.weight"] = numbers[f"{LAYERS[0]}.weight"] + up @ down
    save_file(numbers, tmp_path / "reference.safetensors")
    reference = velocity(load_transformer(tmp_path / "reference.safetensors", dtype=torch.float32))
    assert (velocity(model) - reference).abs().max() <= 1e-5 * reference.abs().max()


def test_several_loras_add_up(tmp_path):
    save_file(base_state() | adapter_state(), tmp_path / "whole.safetensors")
    one, two = both_loras(tmp_path)
    model = load_with([(one, 1.0), (two, -0.5)], tmp_path / "whole.safetensors")
    down, up = pair(LAYERS[0])
    changes = {
        f"{LAYERS[0]}.weight": up @ down - 0.5 * 4 * up @ down,
        f"{LAYERS[0]}.bias": random(256, seed=1) - 0.5 * random(256, seed=2),
        "blocks.1.norm3.weight": random(256, seed=11) - 0.5 * random(256, seed=12),
    }
    assert same(velocity(model), velocity(merged(changes, tmp_path)))
