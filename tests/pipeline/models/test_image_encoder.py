import torch
from multitalk_pack.pipeline.models.image_encoder import ImageEncoder, preprocess
from multitalk_pack.pipeline.weights.key_maps import for_live_keys, rename_clip
from support.golden import Golden
from transformers import CLIPVisionConfig, CLIPVisionModel

GOLDEN = Golden("clip")


def published_encoder():
    config = GOLDEN.config
    model = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=config["dim"],
            intermediate_size=config["dim"] * config["mlp_ratio"],
            num_hidden_layers=config["num_layers"],
            num_attention_heads=config["num_heads"],
            image_size=config["image_size"],
            patch_size=config["patch_size"],
            hidden_act="gelu",
            layer_norm_eps=config["norm_eps"],
        )
    )
    model.load_state_dict(for_live_keys(rename_clip(GOLDEN.state()), model.state_dict()), strict=False)
    return ImageEncoder(model.eval())


def frame():
    return GOLDEN["in.frames"][0, :, 0]


def test_the_frame_is_squashed_to_a_square():
    pixels = preprocess(frame(), GOLDEN.config["image_size"])[None]
    if "mid.preprocessed" in GOLDEN:
        GOLDEN.assert_close(pixels, "mid.preprocessed")
    else:
        GOLDEN.assert_close(pixels[..., ::8, ::8], "mid.preprocessed_every_8th")


def test_the_tokens_are_the_published_ones():
    GOLDEN.assert_close(published_encoder().encode(frame())[None], "out.tokens")


def test_half_precision_gives_float32():
    encoder = published_encoder()
    exact = encoder.encode(frame())
    encoder.model.to(torch.bfloat16)
    rounded = encoder.encode(frame())
    assert rounded.dtype == torch.float32
    assert (rounded - exact).std() < 0.05 * exact.std()
