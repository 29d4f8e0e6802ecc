"""The inputs of a training step, its losses, and a run's state on disk."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from demo.training import guidance, noisy_latents, speech_encoder, transformer, vae, windows
from demo.training.clips import Clip
from demo.training.model import Prompt, TalkingModel, TrainingAttention
from demo.training.run import Run, Setup
from demo.training.windows import Window, Windows


@pytest.fixture
def late_clip():
    """Nine latent frames of somebody who has been speaking for a while."""
    torch.manual_seed(0)
    return Clip(
        latents=torch.randn(16, 9, 4, 4),
        features=torch.randn(1, 40, speech_encoder.LAYERS, speech_encoder.WIDTH),
        image_embeds=torch.randn(257, 80),
        weights=torch.full((4, 4), 9.0),
        smile=1,
        brows=1,
        late=True,
    )


@pytest.fixture
def source(monkeypatch):
    """Source of windows with latents of unit size, a few grey tails, and no clips of its own."""
    monkeypatch.setattr(windows.clips, "load", lambda setup: [])
    monkeypatch.setattr(windows.clips, "latent_statistics", lambda setup: (torch.tensor(0.0), torch.tensor(1.0)))
    monkeypatch.setattr(windows.clips, "load_grey_tails", lambda setup: torch.randn(2, 16, 25, 4, 4))
    return Windows(Setup())


@pytest.fixture
def model():
    """One that has learnt nothing yet."""
    torch.manual_seed(1)
    return TalkingModel()


@pytest.fixture
def step(late_clip, source, model):
    """One step of a loss on two windows: `step(loss)` leaves its gradients in the model and returns its figures."""

    def run(batch_loss):
        random = np.random.default_rng(3)
        batch = [source.window(late_clip, 3, random) for _ in range(2)]
        model.zero_grad()
        loss, figures = batch_loss(model, batch, random)
        loss.backward()
        return {"loss": loss.item()} | figures

    return run


def test_the_context_has_one_error_that_the_frames_after_it_have_not(late_clip, source):
    for seed in range(8):
        window = source.window(late_clip, 9, np.random.default_rng(seed))
        num_context, error = window.num_context, window.clean - late_clip.latents
        assert 2 <= num_context <= 7
        assert (error[:, num_context:] == 0).all()
        same = error[:, :1].expand(-1, num_context, -1, -1)
        torch.testing.assert_close(error[:, :num_context], same, rtol=0, atol=1e-6)
        assert 0 < error[:, 0].std() < 0.4
        assert torch.equal(window.condition[4:, :num_context], window.clean[:, :num_context])
        assert (window.condition[:4, :num_context] == 1).all() and (window.condition[:4, num_context:] == 0).all()


def test_the_context_has_been_coded_once_more_where_a_clip_has_it_so(late_clip, source):
    clip = replace(late_clip, context_latents=late_clip.latents[:, :7] + 10)
    window = source.window(clip, 9, np.random.default_rng(0))
    difference = window.clean - late_clip.latents
    assert (difference[:, : window.num_context] > 5).all() and (difference[:, window.num_context :] == 0).all()


def test_a_window_that_continues_nothing_is_the_clip(late_clip, source, monkeypatch):
    monkeypatch.setattr(windows, "CONTINUED_SHARE", 0.0)
    window = source.window(replace(late_clip, late=False), 5, np.random.default_rng(0))
    assert window.num_context == 1
    assert torch.equal(window.clean, late_clip.latents[:, :5])
    assert window.audio.shape == (1, 17, 5, speech_encoder.LAYERS, speech_encoder.WIDTH)


def test_a_batch_is_of_one_kind(late_clip, source):
    source.clips = [replace(late_clip, smile=smile, brows=brows) for smile in (-1, 0, 1) for brows in (-1, 1)] * 3
    for seed in range(8):
        batch = source.batch(np.random.default_rng(seed), 2, 3)
        assert len(batch) == 2 and len({window.kind for window in batch}) == 1


def test_motion_is_exaggerated_alike_in_all_frames_and_a_little_of_each_by_itself(monkeypatch):
    shares = transformer.motion_shares(200, np.random.default_rng(0))
    monkeypatch.setattr(transformer, "JITTER", 0.0)
    even = transformer.motion_shares(200, np.random.default_rng(0))
    assert np.ptp(even) == 0 < abs(even[0]) <= transformer.EXAGGERATION
    assert 1.4 < np.abs(shares - even).max() <= 1.5


@pytest.mark.parametrize("num_steps", [1, 3])
def test_a_rollout_of_true_velocities_is_the_clip_with_noise_added(num_steps):
    clean, noise = torch.randn(2, 16, 5, 4, 4)
    levels = []

    def predict(latents, sigma, pass_):
        levels.append(sigma)
        torch.testing.assert_close(latents, (1 - sigma) * clean + sigma * noise, rtol=0, atol=1e-5)
        return noise - clean

    latents = noisy_latents.rollout(predict, clean, 1, 0.1, noise, np.random.default_rng(0), num_steps)
    assert len(set(levels)) == num_steps
    assert max(levels) <= 0.1 * 2**num_steps
    torch.testing.assert_close(latents, 0.9 * clean + 0.1 * noise, rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_context", [1, 3])
def test_a_rollout_exaggerates_the_difference_of_the_passes_except_in_the_context(num_context):
    clean, noise, difference = torch.randn(3, 16, 5, 4, 4)
    factors = []
    for seed in range(20):
        latents = noisy_latents.rollout(
            lambda latents, sigma, pass_: noise - clean - (0 if pass_.uses_audio else difference),
            clean, num_context, 0.4, noise, np.random.default_rng(seed),
        )  # fmt: skip
        change = 0.6 * clean + 0.4 * noise - latents
        later = slice(num_context if num_context > 1 else 0, None)
        factors.append((change[:, later] / difference[:, later]).median().item())
        torch.testing.assert_close(change[:, later], factors[-1] * difference[:, later], rtol=0, atol=1e-4)
        assert num_context == 1 or change[:, :num_context].abs().max() < 1e-5
    assert 0 <= min(factors) < 0.1 < 0.5 < max(factors) <= 0.4 * (noisy_latents.MAX_SCALE - 1)


def test_motion_is_exaggerated_less_at_lower_noise_and_not_in_the_context():
    clean, noise = torch.randn(2, 16, 5, 4, 4)

    def change(sigma, shares):
        latents = noisy_latents.exaggerate_motion(clean, 2, sigma, noise, np.array(shares))
        return latents - ((1 - sigma) * clean + sigma * noise)

    motion = clean[:, 2:] - clean[:, 2:].mean(dim=1, keepdim=True)
    assert torch.equal(change(0.5, np.zeros(5)), torch.zeros_like(clean))
    result = change(0.25, [1, 1, 1, 0, -2])
    assert torch.equal(result[:, :2], torch.zeros_like(result[:, :2]))
    expectation = 0.75 * 0.25 * motion * torch.tensor([1.0, 0, -2])[:, None, None]
    torch.testing.assert_close(result[:, 2:], expectation, rtol=0, atol=1e-5)


@pytest.mark.parametrize("batch_loss", [transformer.flow_loss, guidance.guided_loss])
def test_a_step_teaches_every_part(batch_loss, step, model, monkeypatch):
    monkeypatch.setattr(guidance, "ROLLOUT_SHARE", 1.0)
    figures = step(batch_loss)
    assert min(figures.values()) > 0
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


def test_the_guided_velocity_is_that_of_a_pass_with_audio_and_one_without_at_low_noise(step, model, monkeypatch):
    calls, velocity = [], Prompt.velocity

    def recorder(self, latents, sigma, window, silent):
        calls.append((sigma, silent))
        return velocity(self, latents, sigma, window, silent)

    monkeypatch.setattr(Prompt, "velocity", recorder)
    monkeypatch.setattr(guidance, "GUIDED_LOSS_SHARE", 1.0)
    monkeypatch.setattr(transformer, "FULL_DROPOUT", 1.0)
    figures = step(guidance.guided_loss)
    levels, silent = zip(*calls, strict=True)
    assert silent == (False, True) * 2
    assert levels[::2] == levels[1::2]
    assert guidance.LOW_NOISE[0] <= min(levels) < max(levels) <= guidance.LOW_NOISE[1]
    assert figures["guided_mouth"] != pytest.approx(figures["mouth"], rel=1e-4)

    for block in model.transformer.blocks:  # a model without audio: guidance leads nowhere
        torch.nn.init.zeros_(block.audio_cross_attn.proj.weight)
        torch.nn.init.zeros_(block.audio_cross_attn.proj.bias)
    figures = step(guidance.guided_loss)
    assert figures["guided_mouth"] == pytest.approx(figures["mouth"], rel=1e-4)
    assert figures["loss"] == pytest.approx(figures["mouth"], rel=1e-4)


@pytest.mark.parametrize(("phase", "is_noise"), [(guidance, True), (transformer, False)])
def test_in_the_last_phase_alone_latents_at_low_noise_are_the_clip_with_noise_added(phase, is_noise):
    clean = 1000 * torch.randn(16, 5, 4, 4)
    window = Window(clean, 1, clean, clean, clean, None, clean, (1, 1, 1))
    for seed in range(8):
        random = np.random.default_rng(seed)
        sigma = random.uniform(*guidance.LOW_NOISE)
        if phase is guidance:
            latents = guidance.sampled_latents(window, sigma, False, {}, random)
        else:
            latents = transformer.exaggerated_latents(window, sigma, False, random)
        noise = (latents - (1 - sigma) * clean) / sigma
        assert (0.9 < noise.std() < 1.1) == is_noise


def test_counting_a_prompts_padding_is_the_same_as_attending_to_it():
    attention = TrainingAttention(64)
    query, key, value = (torch.randn(1, 2, n, 16) for n in (5, 64, 64))
    key[:, :, 9:], value[:, :, 9:] = key[:, :, 9:10], value[:, :, 9:10]
    expectation = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    assert torch.allclose(attention(query, key, value), expectation, atol=1e-5)
    coarse = attention(*(x.bfloat16() for x in (query, key, value)))
    assert torch.allclose(coarse.float(), expectation, atol=3e-2)
    attention.num_tokens = 9
    assert torch.allclose(attention(query, key, value), expectation, atol=1e-5)


def test_recoded_frames_are_pictures_of_the_decoder():
    torch.manual_seed(0)
    model, frames = vae.build(), torch.rand(1, 3, 5, 16, 16) * 2 - 1
    assert vae.recode(model, frames, 0) is frames
    once = vae.recode(model, frames, 1)
    assert once.shape == frames.shape
    assert not once.requires_grad
    levels = (once + 1) * 127.5
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-3)
    assert torch.equal(vae.recode(model, once, 1), vae.recode(model, frames, 2))


def test_the_vae_weighs_eyes_mouths_and_nothing_else(monkeypatch):
    frames, weights = vae.batch(np.random.default_rng(3), 2, vae.HEIGHT)
    monkeypatch.setattr(vae, "EYE_WEIGHT", 1.0)
    same_frames, without_eyes = vae.batch(np.random.default_rng(3), 2, vae.HEIGHT)
    assert torch.equal(frames, same_frames)
    assert set(without_eyes.unique().tolist()) == {1, vae.MOUTH_WEIGHT}
    assert set(weights[weights != without_eyes].tolist()) == {6}
    white = (frames[:, :, 0] > 0.9).all(dim=1)  # of eyes, which nothing else is
    assert white.flatten(1).any(dim=1).all() and (weights[:, 0, 0][white] == 6).all()


def test_matrices_and_kernels_learn_by_muon_and_everything_else_by_adam(tmp_path):
    network = torch.nn.Sequential(
        torch.nn.Linear(16, 16), torch.nn.Conv3d(16, 9, 3), torch.nn.LayerNorm(16), torch.nn.Embedding(16, 16),
        torch.nn.Linear(16, 2),
    )  # fmt: skip
    run = Run("mixed", network, 1, 0.1, Setup(tmp_path))
    muon = [optimizer for _, optimizer in run.optimizers if isinstance(optimizer, torch.optim.Muon)]
    memory = [weight.data_ptr() for optimizer in muon for group in optimizer.param_groups for weight in group["params"]]
    assert memory == [network[0].weight.data_ptr(), network[1].weight.data_ptr()]
    trained = sum(len(group["params"]) for _, optimizer in run.optimizers for group in optimizer.param_groups)
    assert trained == len(list(network.parameters()))


def test_kernels_move_by_an_orthogonal_matrix_and_those_without_a_gradient_stay(tmp_path):
    torch.manual_seed(0)
    network = torch.nn.Conv2d(12, 9, 3)
    before, run = network.weight.detach().clone(), Run("kernels", network, 1, 5.0, Setup(tmp_path))
    run.update((network.weight[:, :, 1:] * torch.randn(9, 12, 2, 3)).sum())
    change = network.weight.detach() - before
    assert not change[:, :, 0].any()
    size = 5.0 / 50  # in the first of 50 steps over which the rate rises
    sizes = torch.linalg.svdvals(change.flatten(1)) / size
    assert sizes.min() > 0.6 and sizes.max() < 1.3, "five steps of Newton and Schulz are that near"


def test_a_run_goes_on_where_it_stopped_and_a_finished_one_leaves_its_file_alone(tmp_path):
    def steps(num_steps):
        torch.manual_seed(0)
        run = Run("line", torch.nn.Linear(9, 9), num_steps, 0.1, Setup(tmp_path))
        for step in run:
            run.update(run.model(torch.ones(9)).square().sum())
            yield step

    assert list(steps(3)) == [0, 1, 2]
    assert list(steps(5)) == [3, 4]
    time_ns = (tmp_path / "line.pt").stat().st_mtime_ns
    assert list(steps(5)) == []
    assert (tmp_path / "line.pt").stat().st_mtime_ns == time_ns
