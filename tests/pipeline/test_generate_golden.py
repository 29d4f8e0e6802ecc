"""Whole generations of the published programs: same inputs, same injected noise, same frames."""

from itertools import count

import pytest
import torch
from diffusers import AutoencoderKLWan
from multitalk_pack.pipeline.audio.embeds import AudioEmbeds
from multitalk_pack.pipeline.conditioning.conditioning import Conditioning
from multitalk_pack.pipeline.conditioning.reference_image import fit_frames
from multitalk_pack.pipeline.config import ColorMatch, GenerationConfig, Recipe, WindowPlan
from multitalk_pack.pipeline.host import TorchHost
from multitalk_pack.pipeline.models.image_encoder import ImageEncoder
from multitalk_pack.pipeline.models.text_encoder import encode_ids
from multitalk_pack.pipeline.models.transformer.model import MultiTalkTransformer
from multitalk_pack.pipeline.models.vae.video_vae import VideoVae
from multitalk_pack.pipeline.shapes import VAE_STRIDE_SPACE
from multitalk_pack.pipeline.weights.key_maps import (
    for_live_keys,
    rename_clip,
    rename_text,
    rename_transformer,
    rename_vae,
)
from support import run
from support.golden import Golden
from support.speakers import published_masks
from support.transformer import sizes
from transformers import CLIPVisionConfig, CLIPVisionModel, UMT5Config, UMT5EncoderModel

RUNS = {
    "end_to_end": Recipe.MULTITALK,
    "infinitetalk_end_to_end": Recipe.INFINITETALK,
    "infinitetalk_end_to_end_two": Recipe.INFINITETALK,
    "infinitetalk_end_to_end_video": Recipe.INFINITETALK,
}
CASES = [(name, case) for name in RUNS for case in Golden(name).cases]
FLASHTALK = Golden("flashtalk_end_to_end")


class RecordedNoise:
    """Gives out the noise that the published program drew."""

    def __init__(self, golden: Golden, case: str):
        self.golden, self.case = golden, case

    def for_window(self, window, shape):
        return self.golden[f"in.{self.case}.clip{window}.noise"].reshape(tuple(shape))

    def motion(self, window, shape):
        yield from self.golden[f"in.{self.case}.clip{window}.motion_noise"]

    def renoise(self, window, shape):
        yield from self.golden[f"in.{self.case}.clip{window}.renoise"]


@pytest.mark.parametrize(("name", "case"), CASES)
@torch.inference_mode()
def test_the_same_inputs_and_noise_give_the_published_frames(name, case):
    golden = Golden(name)
    facts = golden.cases[case]
    transformer = load_transformer(golden)
    conditioning = make_conditioning(golden, case)
    noise, audio = RecordedNoise(golden, case), make_audio(golden, case)
    windows = run.generate(
        transformer, audio, conditioning, make_config(facts), TorchHost("cpu"), RUNS[name], noise=noise
    )
    frames = torch.cat(list(windows), 1)
    golden.assert_close(conditioning.prompt_embeds[0], "mid.context")
    golden.assert_close(conditioning.negative_embeds, "mid.context_null")
    golden.assert_close(frames, f"out.{case}.video")


@pytest.mark.parametrize("case", FLASHTALK.cases)
@torch.inference_mode()
def test_flashtalk_s_frames_are_the_published_ones_with_those_that_it_throws_away(case):
    """The published program drops the first motion frames, so that its mouth is ahead of the sound."""
    facts = FLASHTALK.cases[case]
    config = GenerationConfig(
        num_frames=facts["total_frames"] + facts["motion_frame"],
        window_frames=facts["frame_num"],
        motion_frames=facts["motion_frame"],
        color_strength=facts["color_strength"],
        color_match=ColorMatch.FRAME,
    )
    conditioning = make_conditioning(FLASHTALK, case)
    windows = run.generate(
        load_transformer(FLASHTALK), make_audio(FLASHTALK, case), conditioning, config, TorchHost("cpu"),
        Recipe.FLASHTALK, noise=RecordedNoise(FLASHTALK, case),
    )  # fmt: skip
    frames = torch.cat(list(windows), 1)
    FLASHTALK.assert_close(conditioning.prompt_embeds[0], "mid.context")
    FLASHTALK.assert_close(frames[:, facts["motion_frame"] :], f"out.{case}.video")


def make_config(facts: dict) -> GenerationConfig:
    return GenerationConfig(
        steps=facts["steps"],
        shift=facts["shift"],
        text_scale=facts["text_scale"],
        audio_scale=facts["audio_scale"],
        projected=facts["apg"],
        plan=WindowPlan.PUBLISHED,
        window_frames=facts["frame_num"],
        motion_frames=facts["motion_frame"],
        max_frames=facts["max_frames_num"],
        color_strength=facts["color_strength"],
    )


def make_audio(golden: Golden, case: str) -> AudioEmbeds:
    names = (f"in.{case}.audio_person{number}" for number in count(1))
    people = [golden[name] for name, _ in zip(names, range(golden.cases[case]["people"]), strict=False)]
    return AudioEmbeds(torch.stack(people), len(people[0]))


def make_conditioning(golden: Golden, case: str) -> Conditioning:
    facts, target = golden.cases[case], tuple(golden.cases[case]["target_hw"])
    video = f"in.{case}.source_video_uint8"
    pictures = golden[video] if video in golden else golden["in.image_uint8"][None]
    text = load_text_encoder(golden)
    negative = "negative_prompt" if "in.negative_prompt.ids" in golden else "prompt"  # without guidance there is none
    prompt, negative = (
        encode_ids(text, golden[f"in.{name}.ids"], golden[f"in.{name}.mask"]) for name in ("prompt", negative)
    )
    return Conditioning(
        source=fit_frames(pictures, len(pictures), target),
        prompt_embeds=(prompt,),
        negative_embeds=negative,
        vae=VideoVae(load_vae(golden)),
        image_encoder=ImageEncoder(load_image_encoder(golden)),
        speaker_masks=make_masks(facts, pictures.shape[1:3], target) if facts["people"] > 1 else None,
    )


def make_masks(facts: dict, image_hw: tuple[int, int], target: tuple[int, int]) -> torch.Tensor:
    """The published masks, which are of latent size, at the size of the pixels."""
    boxes = facts.get("bbox")
    latent = published_masks(
        tuple(image_hw), target, facts["people"], boxes and list(boxes.values()), facts["face_scale"]
    )
    return latent.repeat_interleave(VAE_STRIDE_SPACE, 1).repeat_interleave(VAE_STRIDE_SPACE, 2)


def weights(golden: Golden, part: str) -> dict:
    return {key[len(part) + 1 :]: value for key, value in golden.tensors.items() if key.startswith(f"{part}.")}


def load_transformer(golden: Golden) -> MultiTalkTransformer:
    transformer = MultiTalkTransformer(**sizes(golden.config["dit"])).eval()
    transformer.load_state_dict({rename_transformer(key): value for key, value in weights(golden, "dit").items()})
    return transformer


def load_vae(golden: Golden) -> AutoencoderKLWan:
    config = golden.config["vae"]
    vae = AutoencoderKLWan(
        base_dim=config["dim"], z_dim=config["z_dim"], dim_mult=config["dim_mult"],
        num_res_blocks=config["num_res_blocks"], temperal_downsample=config["temporal_downsample"],
    ).eval()  # fmt: skip
    vae.load_state_dict({rename_vae(key): value for key, value in weights(golden, "vae").items()})
    return vae


def load_image_encoder(golden: Golden) -> CLIPVisionModel:
    config = golden.config["clip"]
    model = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=config["dim"], intermediate_size=config["dim"] * config["mlp_ratio"],
            num_hidden_layers=config["num_layers"], num_attention_heads=config["num_heads"],
            image_size=config["image_size"], patch_size=config["patch_size"], hidden_act="gelu",
            layer_norm_eps=config["norm_eps"],
        )
    ).eval()  # fmt: skip
    state = for_live_keys(rename_clip(weights(golden, "clip")), model.state_dict())
    model.load_state_dict({key: state[key] for key in model.state_dict()})
    return model


def load_text_encoder(golden: Golden) -> UMT5EncoderModel:
    config = golden.config["t5"]
    model = UMT5EncoderModel(
        UMT5Config(
            vocab_size=config["vocab_size"], d_model=config["dim"], d_kv=config["dim_attn"] // config["num_heads"],
            d_ff=config["dim_ffn"], num_layers=config["num_layers"], num_heads=config["num_heads"],
            relative_attention_num_buckets=config["num_buckets"],
            relative_attention_max_distance=config["max_distance"],
            feed_forward_proj="gated-gelu", dropout_rate=0.0, is_encoder_decoder=False,
        )
    ).eval()  # fmt: skip
    state = {rename_text(key): value for key, value in weights(golden, "t5").items()}
    state["encoder.embed_tokens.weight"] = state["shared.weight"]
    model.load_state_dict({key: state[key] for key in model.state_dict()})
    return model
