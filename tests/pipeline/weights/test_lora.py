"""Every trainer's layout acts as if merged in float32; taking LoRAs off leaves the weights bit for bit."""

import json
import math

import pytest
import torch
from multitalk_pack.pipeline.weights.build import load_transformer
from multitalk_pack.pipeline.weights.key_maps import rename_transformer
from multitalk_pack.pipeline.weights.lora import LoraStack
from safetensors.torch import save_file
from support.packagings import E4M3, gguf_file, scaled
from support.tiny_models import adapter_state, base_state, velocity

RANK = 4
LAYERS = ("blocks.0.self_attn.q", "blocks.1.cross_attn.k_img", "blocks.1.ffn.0", "blocks.0.audio_cross_attn.q_linear")
SMALL = 0.02


def drawn(*shape, seed=0):
    return SMALL * torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def pair(layer):
    """Down and up of a layer."""
    rows, columns = (base_state() | adapter_state())[f"{layer}.weight"].shape
    return drawn(RANK, columns, seed=len(layer)), drawn(rows, RANK, seed=2 * len(layer))


def merged(changes, folder):
    """The transformer with changed native weights, loaded from a plain file."""
    state = base_state() | adapter_state()
    save_file({key: (state[key] + changes[key]) if key in changes else state[key] for key in state},
              folder / "merged.safetensors")  # fmt: skip
    return load_transformer(folder / "merged.safetensors", dtype=torch.float32)


def lora_file(state, folder, name="lora.safetensors"):
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, folder / name)
    return folder / name


def same(got, wanted):
    return (got - wanted).abs().max() <= 2e-6 * wanted.abs().max()


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
    report = LoraStack(plain_transformer).add(lora_file(state, tmp_path), 0.7)
    assert report.applied == {"layers": len(LAYERS)} and not report.skipped
    assert same(velocity(plain_transformer), velocity(merged(changes, tmp_path)))


def test_differences_act_on_norms_biases_modulation_and_outer_layers(tmp_path, plain_transformer):
    changes = {
        "blocks.0.norm3.weight": drawn(256), "blocks.0.self_attn.norm_q.weight": drawn(256, seed=1),
        "blocks.1.self_attn.o.bias": drawn(256, seed=2), "blocks.1.modulation": drawn(1, 6, 256),
        "head.modulation": drawn(1, 2, 256), "head.head.weight": drawn(64, 256), "time_embedding.0.bias": drawn(256),
        "patch_embedding.weight": drawn(256, 36, 1, 2, 2), "blocks.0.ffn.2.weight": drawn(256, 512),
    }  # fmt: skip
    endings = {"weight": "diff", "bias": "diff_b", "modulation": "diff_m"}
    state = {}
    for key, change in changes.items():
        path, _, leaf = key.rpartition(".")
        state[f"diffusion_model.{path}.{endings[leaf]}"] = change
    report = LoraStack(plain_transformer).add(lora_file(state, tmp_path), 0.5)
    assert report.applied == {"layers": 3, "norms": 2, "biases": 2, "modulations": 2}
    half = {key: 0.5 * change for key, change in changes.items()}
    assert same(velocity(plain_transformer), velocity(merged(half, tmp_path)))


def test_a_layer_may_have_a_product_and_a_difference(tmp_path, plain_transformer):
    (down, up), diff, bias = pair(LAYERS[0]), drawn(256, 256), drawn(256)
    path = f"diffusion_model.{LAYERS[0]}"
    LoraStack(plain_transformer).add(lora_file({
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
    LoraStack(plain_transformer).add(lora_file(state, tmp_path))
    assert same(velocity(plain_transformer), velocity(merged(changes, tmp_path)))


def test_loha_and_lokr(tmp_path, plain_transformer):
    hada = {f"hada_w{i}_{part}": drawn(*shape, seed=i) * 20
            for i in (1, 2) for part, shape in (("a", (256, RANK)), ("b", (RANK, 256)))}  # fmt: skip
    kron = {"lokr_w1": drawn(8, 8), "lokr_w2_a": drawn(32, RANK) * 20, "lokr_w2_b": drawn(RANK, 32) * 20}
    state = {f"lycoris_blocks_0_self_attn_q.{name}": tensor for name, tensor in hada.items()}
    state |= {f"lycoris_blocks_0_self_attn_k.{name}": tensor for name, tensor in kron.items()}
    state |= {f"lycoris_blocks_0_self_attn_{x}.alpha": torch.tensor(2.0) for x in "qk"}
    assert LoraStack(plain_transformer).add(lora_file(state, tmp_path)).applied == {"layers": 2}
    first = (hada["hada_w1_a"] @ hada["hada_w1_b"]) * (hada["hada_w2_a"] @ hada["hada_w2_b"])
    second = torch.kron(kron["lokr_w1"], kron["lokr_w2_a"] @ kron["lokr_w2_b"])
    changes = {"blocks.0.self_attn.q.weight": first / 2, "blocks.0.self_attn.k.weight": second / 2}
    assert same(velocity(plain_transformer), velocity(merged(changes, tmp_path)))


@pytest.mark.parametrize("is_rank_stabilized", [False, True])
def test_pefts_own_configuration_is_honoured(is_rank_stabilized, tmp_path, plain_transformer):
    down, up = pair(LAYERS[0])
    folder = tmp_path / "peft"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"lora_alpha": 6, "use_rslora": is_rank_stabilized}))
    path = f"base_model.model.{LAYERS[0]}"
    lora_file({f"{path}.lora_A.weight": down, f"{path}.lora_B.weight": up}, folder, "adapter_model.safetensors")
    LoraStack(plain_transformer).add(folder)
    factor = 6 / (math.sqrt(RANK) if is_rank_stabilized else RANK)
    assert same(velocity(plain_transformer), velocity(merged({f"{LAYERS[0]}.weight": factor * up @ down}, tmp_path)))


def test_a_configuration_among_several_loras_is_nobodys(tmp_path, plain_transformer):
    down, up = pair(LAYERS[0])
    path = f"base_model.model.{LAYERS[0]}"
    chosen = lora_file({f"{path}.lora_A.weight": down, f"{path}.lora_B.weight": up}, tmp_path)
    lora_file({"x.lora_A.weight": down}, tmp_path, "another.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 64}))
    LoraStack(plain_transformer).add(chosen)
    assert same(velocity(plain_transformer), velocity(merged({f"{LAYERS[0]}.weight": up @ down}, tmp_path)))


def test_what_does_not_fit_is_skipped_and_said(tmp_path, plain_transformer):
    down, up = pair(LAYERS[0])
    report = LoraStack(plain_transformer).add(lora_file({
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
        state |= {f"{path}.diff_b": drawn(256, seed=number)}
        state |= {"diffusion_model.blocks.1.norm3.diff": drawn(256, seed=10 + number)}
        files.append(lora_file(state, tmp_path, f"{number}.safetensors"))
    return files


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_taken_off_in_any_order_nothing_is_left(order, dtype, tmp_path):
    save_file(base_state() | adapter_state(), tmp_path / "whole.safetensors")
    model = load_transformer(tmp_path / "whole.safetensors", dtype=dtype)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    stack = LoraStack(model)
    reports = [stack.add(path, 0.5) for path in both_loras(tmp_path)]
    stack.remove(reports[order[0]])
    single = load_transformer(tmp_path / "whole.safetensors", dtype=dtype)
    LoraStack(single).add(both_loras(tmp_path)[order[1]], 0.5)
    assert torch.equal(velocity(model), velocity(single))
    stack.remove(reports[order[1]])
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[key], before[key]) for key in before)


@pytest.mark.parametrize("write", [gguf_file("Q8_0"), scaled(E4M3, False, ".weight", ".scale_weight", True)],
                         ids=["GGUF", "fp8"])  # fmt: skip
def test_on_packed_weights_too(write, tmp_path):
    base, adapter, numbers = write(base_state(), adapter_state(), tmp_path)
    down, up = pair(LAYERS[0])
    path = f"diffusion_model.{LAYERS[0]}"
    lora = lora_file({f"{path}.lora_down.weight": down, f"{path}.lora_up.weight": up}, tmp_path)
    model = load_transformer(base, adapter, dtype=torch.float32)
    before = velocity(model)
    stack = LoraStack(model)
    report = stack.add(lora)
    numbers = dict(numbers)
    numbers[f"{LAYERS[0]}.weight"] = numbers[f"{LAYERS[0]}.weight"] + up @ down
    save_file(numbers, tmp_path / "reference.safetensors")
    wanted = velocity(load_transformer(tmp_path / "reference.safetensors", dtype=torch.float32))
    assert (velocity(model) - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    stack.remove(report)
    assert torch.equal(velocity(model), before)


def test_loras_are_put_on_while_loading(tmp_path):
    save_file(base_state() | adapter_state(), tmp_path / "whole.safetensors")
    one, two = both_loras(tmp_path)
    model = load_transformer(tmp_path / "whole.safetensors", loras=[(one, 1.0), (two, -0.5)], dtype=torch.float32)
    down, up = pair(LAYERS[0])
    changes = {
        f"{LAYERS[0]}.weight": up @ down - 0.5 * 4 * up @ down,
        f"{LAYERS[0]}.bias": drawn(256, seed=1) - 0.5 * drawn(256, seed=2),
        "blocks.1.norm3.weight": drawn(256, seed=11) - 0.5 * drawn(256, seed=12),
    }
    assert same(velocity(model), velocity(merged(changes, tmp_path)))
