import pytest
import torch
from einops import rearrange, reduce
from multitalk_pack.pipeline.conditioning.context_frames import condition, context_mask, motion_latents
from multitalk_pack.pipeline.conditioning.reference_image import fit
from multitalk_pack.pipeline.errors import ConfigError
from multitalk_pack.pipeline.postprocess.apply import PostprocessConfig, postprocess
from multitalk_pack.pipeline.postprocess.color import FLASHTALK_DIGITS
from support.golden import Golden

MSK_Y, INFINITETALK, FLASHTALK = map(Golden, ("msk_y", "infinitetalk_plan", "flashtalk_plan"))
CONDITIONS = [(plan, case) for plan in (INFINITETALK, FLASHTALK) for case in plan.cases if case.startswith("cond")]


class LinearVae:
    """The goldens' stand-in: pixels pooled 8x8 and over a latent frame's frames, then mixed by a matrix."""

    def __init__(self, golden):
        self.mix, self.unmix = golden["vae.A"], golden["vae.B"]

    def encode(self, frames):
        first, others = frames[:, :1], frames[:, 1:]
        pooled = [
            reduce(first, "c f (h a) (w b) -> c f h w", "mean", a=8, b=8),
            reduce(others, "c (t f) (h a) (w b) -> c t h w", "mean", f=4, a=8, b=8),
        ]
        return torch.einsum("dc,cthw->dthw", self.mix, torch.cat(pooled, dim=1))

    def encode_padded(self, context, num_frames):
        grey = context.new_zeros(3, num_frames - context.shape[1], *context.shape[2:])
        return self.encode(torch.cat((context, grey), dim=1))

    def decode(self, latents):
        pixels = torch.einsum("dc,cthw->dthw", self.unmix, latents).tanh().clamp(-1, 1)
        for index, frame in enumerate(rearrange(pixels, "c t h w -> t c 1 h w")):
            enlarged = frame.repeat_interleave(8, 2).repeat_interleave(8, 3)
            yield enlarged.expand(-1, 1 if index == 0 else 4, -1, -1)


@pytest.mark.parametrize("case", MSK_Y.cases)
def test_the_condition_is_the_published_one(case):
    context = MSK_Y[f"in.{case}.known_frames"]
    got = condition(LinearVae(MSK_Y), context, MSK_Y.config["frame_num"])
    MSK_Y.assert_close(got, f"out.{case}.y")
    MSK_Y.assert_close(got[4:], f"mid.{case}.vae_latents")
    assert torch.equal(got[:4], MSK_Y[f"out.{case}.y"][:4])


def test_known_frames_are_the_fitted_image_and_then_the_last_decoded_frames():
    first, second = (MSK_Y[f"in.{case}.known_frames"] for case in MSK_Y.cases)
    assert torch.allclose(fit(MSK_Y["in.image_uint8"], tuple(first.shape[2:]))[:, None], first, atol=1e-6)
    frames = torch.cat(list(LinearVae(MSK_Y).decode(MSK_Y["mid.final_latents_first_clip"])), dim=1)
    assert torch.allclose(frames[:, -MSK_Y.config["motion_frame"] :], second, atol=1e-6)


@pytest.mark.parametrize(("case", "num_context"), [("first", 1), ("second", None)])
def test_the_mask_of_a_published_window(case, num_context):
    published = MSK_Y.config["published"]
    mask = context_mask(num_context or published["motion_frame"], published["frame_num"])
    assert torch.equal(mask, MSK_Y[f"out.published_{case}_clip.mask"])


def test_a_mask_may_end_inside_a_latent_frame():
    assert context_mask(4, 9).T.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0], [0, 0, 0, 0]]


def clips(plan, case):
    return range(sum(name.startswith(f"mid.{case}.clip") and "final" in name for name in plan.tensors))


@pytest.mark.parametrize(("plan", "case"), CONDITIONS)
def test_infinitetalk_and_flashtalk_look_back_at_their_reference(plan, case):
    vae = LinearVae(plan)
    for clip in clips(plan, case):
        if f"out.{case}.clip{clip}.y" not in plan:
            continue
        num_frames = 4 * plan[f"out.{case}.clip{clip}.y"].shape[1] - 3
        got = condition(vae, plan[f"mid.{case}.clip{clip}.reference"], num_frames)
        plan.assert_close(got, f"out.{case}.clip{clip}.y")


@pytest.mark.parametrize(("plan", "case"), CONDITIONS)
def test_infinitetalk_and_flashtalk_hand_on_clean_motion(plan, case):
    vae = LinearVae(plan)
    for clip in clips(plan, case):
        source = "reference" if clip == 0 else "motion_frames"
        got = motion_latents(vae, plan[f"mid.{case}.clip{clip}.{source}"])
        plan.assert_close(got, f"out.{case}.clip{clip}.motion_latents")


@pytest.mark.parametrize("case", [case for plan, case in CONDITIONS if plan is FLASHTALK])
def test_flashtalk_matches_each_frame_before_it_hands_it_on(case):
    vae, reference, video = LinearVae(FLASHTALK), FLASHTALK[f"mid.{case}.clip0.reference"][:, 0], []
    facts = FLASHTALK.cases[case]
    lead = facts["motion_frame"]
    config = PostprocessConfig(facts["color_strength"], color_digits=FLASHTALK_DIGITS, fades_seam=False)
    for clip in clips(FLASHTALK, case):
        frames = torch.cat(list(vae.decode(FLASHTALK[f"mid.{case}.clip{clip}.final_latents"])), dim=1)
        frames = postprocess(frames, reference, None, 0, config, torch.device("cpu"))
        video.append(frames[:, lead:])
        if clip + 1 in clips(FLASHTALK, case):
            FLASHTALK.assert_close(frames[:, -lead:], f"mid.{case}.clip{clip + 1}.motion_frames")
    step = {"every 8th": 8, "every 4th": 4}[facts["video_rows_and_columns"]]
    FLASHTALK.assert_close(torch.cat(video, dim=1)[..., ::step, ::step], f"out.{case}.video")


def test_more_known_frames_than_the_window_has_are_refused():
    with pytest.raises(ConfigError, match="window of 5 frames cannot start with 9"):
        condition(LinearVae(MSK_Y), torch.zeros(3, 9, 16, 16), 5)
