"""What a training step learns from, and how a run is kept on disk."""

from pathlib import Path

import numpy as np
import pytest
import torch

PACK = Path(__file__).resolve().parents[2]
NEUTRAL = torch.zeros(16, 1, 1, 1), torch.ones(16, 1, 1, 1)


@pytest.fixture(autouse=True)
def root_on_path(monkeypatch):
    """`demo` is run from the repository's root, like the benchmarks."""
    monkeypatch.syspath_prepend(str(PACK))


@pytest.fixture
def late_clip():
    """Nine latent frames of somebody who has been speaking for a while."""
    torch.manual_seed(0)
    return {
        "latents": torch.randn(16, 9, 4, 4), "features": torch.randn(1, 40, 2, 8), "weights": torch.ones(4, 4),
        "image": torch.randn(257, 80), "late": True,
    }  # fmt: skip


@pytest.fixture
def grey_tails(tmp_path, monkeypatch):
    """A store of them."""
    from demo import windows

    monkeypatch.setattr(windows, "RUN_FOLDER", tmp_path)
    monkeypatch.setattr(windows, "_tails", {})
    torch.save({"tails": torch.randn(2, 16, 25, 4, 4)}, tmp_path / "grey_tails.pt")


@pytest.fixture
def tokenizer():
    """That of the prompts."""
    import sentencepiece

    from demo import prompts

    return sentencepiece.SentencePieceProcessor(model_proto=prompts.tokenizer())


@pytest.fixture
def model(tokenizer):
    """One that has learnt nothing yet."""
    from demo.talking_model import TalkingModel

    torch.manual_seed(1)
    return TalkingModel(tokenizer.vocab_size())


@pytest.fixture
def step(late_clip, grey_tails, tokenizer, model):
    """One step of a phase on two clips: `step(phase)` gives its figures."""
    from demo import train_audio
    from demo.train_transformer import _step

    features = torch.randn(1, 40, train_audio.LAYERS, train_audio.WIDTH)
    late_clip |= {"features": features, "weights": torch.full((4, 4), 9.0), "smile": 1, "brows": 1}

    def run(phase):
        random = np.random.default_rng(3)
        return _step(model, tokenizer, [late_clip] * 2, phase, NEUTRAL, random, torch.device("cpu"))

    return run


@pytest.mark.usefixtures("grey_tails")
def test_known_frames_wear_one_error_that_what_follows_has_not(late_clip):
    from demo.windows import window_of

    for seed in range(8):
        made = window_of(late_clip, 9, 0.3, NEUTRAL, np.random.default_rng(seed))
        known, error = made["known"], made["clean"] - late_clip["latents"]
        assert 2 <= known <= 7
        assert (error[:, known:] == 0).all()
        torch.testing.assert_close(error[:, :known], error[:, :1].expand(-1, known, -1, -1), rtol=0, atol=1e-6)
        assert 0 < error[:, 0].std() < 0.4
        assert torch.equal(made["condition"][4:, :known], made["clean"][:, :known])
        assert (made["condition"][:4, :known] == 1).all() and (made["condition"][:4, known:] == 0).all()


@pytest.mark.usefixtures("grey_tails")
def test_known_frames_have_been_coded_once_more_where_a_clip_keeps_them_so(late_clip):
    from demo.windows import window_of

    late_clip["coded"] = late_clip["latents"][:, :7] + 10
    made = window_of(late_clip, 9, 0.3, NEUTRAL, np.random.default_rng(0))
    known, moved = made["known"], made["clean"] - late_clip["latents"]
    assert (moved[:, :known] > 5).all() and (moved[:, known:] == 0).all()


@pytest.mark.usefixtures("grey_tails")
def test_unworn_frames_are_those_of_the_clip(late_clip):
    from demo.windows import window_of

    made = window_of(late_clip, 5, 0.0, NEUTRAL, np.random.default_rng(0))
    assert torch.equal(made["clean"], late_clip["latents"][:, :5])
    assert made["audio"].shape == (1, 17, 5, 2, 8)


def test_motion_is_overdone_alike_in_all_frames_unless_asked_otherwise():
    from demo.train_transformer import Phase, _overdone

    def drawn(**phase):
        return _overdone(Phase(1, 1, (), (), overdone=1.5, **phase), 200, np.random.default_rng(0))

    even, uneven = drawn(), drawn(uneven=0.5)
    assert np.ptp(even) == 0 < abs(even[0]) <= 1.5
    assert 0.45 < np.abs(uneven - even).max() <= 0.5


@pytest.mark.parametrize("steps", [1, 3])
def test_a_guided_state_of_true_velocities_is_the_clip_with_noise_added(steps):
    from demo.states import guided

    clean, noise = torch.randn(2, 16, 5, 4, 4)
    levels = []

    def predict(noisy, sigma, pass_):
        levels.append(sigma)
        torch.testing.assert_close(noisy, (1 - sigma) * clean + sigma * noise, rtol=0, atol=1e-5)
        return noise - clean

    arrived = guided(predict, clean, 1, 0.1, noise, np.random.default_rng(0), steps)
    assert len(set(levels)) == steps
    assert max(levels) <= 0.1 * 2**steps
    torch.testing.assert_close(arrived, 0.9 * clean + 0.1 * noise, rtol=0, atol=1e-5)


@pytest.mark.parametrize("known", [1, 3])
def test_a_guided_state_overdoes_what_the_passes_differ_in_except_in_known_frames(known):
    from demo.states import LARGEST_SCALE, guided

    clean, noise, difference = torch.randn(3, 16, 5, 4, 4)
    factors = []
    for seed in range(20):
        arrived = guided(
            lambda noisy, sigma, pass_: noise - clean - (0 if pass_.uses_audio else difference),
            clean, known, 0.4, noise, np.random.default_rng(seed),
        )  # fmt: skip
        moved = 0.6 * clean + 0.4 * noise - arrived
        later = slice(known if known > 1 else 0, None)
        factors.append((moved[:, later] / difference[:, later]).median().item())
        torch.testing.assert_close(moved[:, later], factors[-1] * difference[:, later], rtol=0, atol=1e-4)
        assert known == 1 or moved[:, :known].abs().max() < 1e-5
    assert 0 <= min(factors) < 0.1 < 0.5 < max(factors) <= 0.4 * (LARGEST_SCALE - 1)


def test_less_is_overdone_where_less_noise_is_left_and_nothing_of_known_frames():
    from demo.states import overdone

    clean, noise = torch.randn(2, 16, 5, 4, 4)

    def moved(sigma, shares):
        return overdone(clean, 2, sigma, noise, np.array(shares)) - ((1 - sigma) * clean + sigma * noise)

    motion = clean[:, 2:] - clean[:, 2:].mean(dim=1, keepdim=True)
    assert torch.equal(moved(0.5, np.zeros(5)), torch.zeros_like(clean))
    found = moved(0.25, [1, 1, 1, 0, -2])
    assert torch.equal(found[:, :2], torch.zeros_like(found[:, :2]))
    wanted = 0.75 * 0.25 * motion * torch.tensor([1.0, 0, -2])[:, None, None]
    torch.testing.assert_close(found[:, 2:], wanted, rtol=0, atol=1e-5)


def test_a_step_on_guided_states_teaches_every_part(step, model):
    from demo.train_transformer import Phase

    figures = step(Phase(1, 2, (), (3,), guided=1.0))
    assert set(figures) == {"loss", "mouth"}
    assert min(figures.values()) > 0
    untaught = [name for name, weight in model.named_parameters() if weight.grad is None]
    assert untaught == []


def test_the_guided_velocity_is_asked_at_low_noise_of_a_pass_that_hears_and_one_that_does_not(step, model, monkeypatch):
    from demo.talking_model import Words
    from demo.train_transformer import LOW_NOISE, Dropped, Phase

    asked, velocity = [], Words.velocity

    def recorded(self, noisy, sigma, example, silent):
        asked.append((sigma, silent))
        return velocity(self, noisy, sigma, example, silent)

    monkeypatch.setattr(Words, "velocity", recorded)
    everything_dropped = Phase(1, 2, (), (3,), asked_guided=1.0, dropped=Dropped(0, 1, both=1))
    figures = step(everything_dropped)
    levels, silent = zip(*asked, strict=True)
    assert silent == (False, True) * 2
    assert levels[::2] == levels[1::2]
    assert LOW_NOISE[0] <= min(levels) < max(levels) <= LOW_NOISE[1]
    assert figures["guided_mouth"] != pytest.approx(figures["mouth"], rel=1e-4)

    for block in model.transformer.blocks:  # a model that hears nothing: guidance leads nowhere
        torch.nn.init.zeros_(block.audio_cross_attn.proj.weight)
        torch.nn.init.zeros_(block.audio_cross_attn.proj.bias)
    figures = step(everything_dropped)
    assert figures["guided_mouth"] == pytest.approx(figures["mouth"], rel=1e-4)
    assert figures["loss"] == pytest.approx(figures["mouth"], rel=1e-4)


@pytest.mark.parametrize("settled", [True, False])
def test_where_states_are_settled_nothing_but_noise_is_added_at_low_noise(settled):
    from demo.train_transformer import Phase, _state

    clean = 1000 * torch.randn(16, 5, 4, 4)
    phase = Phase(1, 2, (), (5,), overdone=1.5, guided=float(settled), settled=settled)
    for seed in range(8):
        random = np.random.default_rng(seed)
        noisy, sigma = _state(phase, {}, {"clean": clean, "known": 1}, silent=False, low_noise=True, random=random)
        noise = (noisy - (1 - sigma) * clean) / sigma
        assert (0.9 < noise.std() < 1.1) == settled


def test_coded_frames_are_pictures_that_a_decoder_drew():
    from demo.train_vae import build, coded

    torch.manual_seed(0)
    vae, frames = build(), torch.rand(1, 3, 5, 16, 16) * 2 - 1
    assert coded(vae, frames, 0) is frames
    once = coded(vae, frames, 1)
    assert once.shape == frames.shape
    assert not once.requires_grad
    levels = (once + 1) * 127.5
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-3)
    assert torch.equal(coded(vae, once, 1), coded(vae, frames, 2))


def test_what_learns_eyes_weighs_them_and_nothing_else():
    from demo.train_vae import FRAME_SIZE, Phase, batch

    def drawn(**weights):
        return batch(np.random.default_rng(3), Phase(1, 4, 1, FRAME_SIZE, **weights))

    (frames, plain), (same, heavy) = drawn(), drawn(eye_weight=4.0)
    assert torch.equal(frames, same)
    assert set(plain.unique().tolist()) == {1, 3}
    assert set(heavy[heavy != plain].tolist()) == {4}
    white = (frames[:, :, 0] > 0.9).all(dim=1)  # of eyes, which nothing else is
    assert white.flatten(1).any(dim=1).all() and (heavy[:, 0, 0][white] == 4).all()


def test_a_run_goes_on_where_it_stopped_and_a_finished_one_leaves_its_file_alone(tmp_path, monkeypatch):
    from demo import run

    monkeypatch.setattr(run, "RUN_FOLDER", tmp_path)

    def steps(until):
        torch.manual_seed(0)
        training = run.Run("line", torch.nn.Linear(9, 9), until, rate=0.1)
        for step in training:
            training.update(training.model(torch.ones(9)).square().sum())
            yield step

    assert list(steps(3)) == [0, 1, 2]
    assert list(steps(5)) == [3, 4]
    written = (tmp_path / "line.pt").stat().st_mtime_ns
    assert list(steps(5)) == []
    assert (tmp_path / "line.pt").stat().st_mtime_ns == written
