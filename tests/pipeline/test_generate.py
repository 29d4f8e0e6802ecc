"""Properties of every run, on real classes at tiny sizes."""

import dataclasses

import pytest
import torch
from multitalk_pack.pipeline.config import Recipe
from multitalk_pack.pipeline.errors import ConfigError, NumericalError
from multitalk_pack.pipeline.generation.preview import FramePreview
from multitalk_pack.pipeline.memory.placement import MemoryConfig, MemoryLimit
from support import run


@pytest.fixture(scope="module")
def model():
    return run.model()


def frames_of(model, num_frames=13, num_speakers=1, host=None, config=None, audio=None, **options):
    audio = audio or run.audio(model, num_frames, num_speakers)
    conditioning = run.conditioning(model, num_speakers)
    windows = run.generate(model, audio, conditioning, config, host, **options)
    return torch.cat(list(windows), 1)


@pytest.mark.parametrize("num_frames", [1, 5, 9, 10, 13, 14, 30])
@pytest.mark.parametrize("recipe", list(Recipe))
def test_as_many_frames_come_as_were_asked_for(model, num_frames, recipe):
    frames = frames_of(model, num_frames, config=run.config(steps=1), recipe=recipe)
    assert frames.shape == (3, num_frames, run.HEIGHT, run.WIDTH)
    assert frames.abs().max() <= 1


def test_the_same_seed_gives_the_same_frames_whatever_ran_before(model):
    before = frames_of(model)
    torch.manual_seed(7)
    torch.randn(100)
    frames_of(model, 5, config=run.config(seed=1))
    state = torch.get_rng_state()
    assert torch.equal(frames_of(model), before)
    assert torch.equal(torch.get_rng_state(), state), "a global seed was touched"
    assert not torch.equal(frames_of(model, config=run.config(seed=43)), before)


def test_one_window_is_the_same_as_a_stream_that_needs_only_one(model):
    single = frames_of(model, 9, config=run.config(num_frames=0, motion_frames=5))
    stream = frames_of(model, 9, config=run.config(num_frames=0, motion_frames=1))
    assert torch.equal(single, stream)


def test_guidance_with_all_scales_one_is_one_forward_a_step(model, monkeypatch):
    calls = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda *args: calls.append(args) or forward(*args))
    plain = run.config(steps=3, text_scale=1.0, audio_scale=1.0)
    frames_of(model, 9, config=plain)
    assert len(calls) == 3
    calls.clear()
    frames_of(model, 9, config=run.config(steps=3))
    assert len(calls) == 9


@pytest.mark.parametrize("num_speakers", [2, 3])
def test_several_speakers_run_and_each_voice_matters(model, num_speakers):
    audio = run.audio(model, 9, num_speakers)
    frames = frames_of(model, 9, num_speakers, audio=audio)
    for speaker in range(num_speakers):
        features = audio.features.clone()
        features[speaker] += 1
        other = dataclasses.replace(audio, features=features)
        assert not torch.allclose(frames_of(model, 9, num_speakers, audio=other), frames, atol=1e-3)


def test_streamed_blocks_give_the_same_bits_and_leave_the_model_at_home(model):
    resident = frames_of(model, 9)
    homes = [parameter.data_ptr() for parameter in model.parameters()]
    for blocks in (0, 1):
        streamed = frames_of(model, 9, memory=MemoryConfig(MemoryLimit.AUTO, resident_blocks=blocks))
        assert torch.equal(streamed, resident)
        assert [parameter.data_ptr() for parameter in model.parameters()] == homes


def test_out_of_memory_streams_the_blocks_and_goes_on_from_the_same_step(model, monkeypatch, caplog):
    expected = frames_of(model, 9)
    forward, calls = model.forward, []

    def fail_once(*args):
        calls.append(args)
        if len(calls) == 4:
            raise torch.OutOfMemoryError("no room")
        return forward(*args)

    monkeypatch.setattr(model, "forward", fail_once)
    assert torch.equal(frames_of(model, 9), expected)
    assert len(calls) == 7, "two steps of three passes and one forward done again"
    assert "all blocks are streamed" in caplog.text


def test_cancelling_ends_within_one_forward_and_harms_no_later_run(model, monkeypatch):
    expected = frames_of(model, 9)
    forward, calls = model.forward, []
    monkeypatch.setattr(model, "forward", lambda *args: calls.append(args) or forward(*args))
    host = run.RecordingHost(cancel_after=3)
    with pytest.raises(KeyboardInterrupt):
        frames_of(model, 9, host=host)
    assert host.cancel_checks == 4 and len(calls) <= 3
    assert torch.equal(frames_of(model, 9), expected)


def test_a_still_reference_is_encoded_once_and_a_dubbed_video_for_every_window(model, monkeypatch):
    still, references = run.conditioning(model), []
    video = dataclasses.replace(still, source=still.source.repeat(30, 1, 1, 1))
    encode = type(still.vae).encode_padded

    def count_and_encode(vae, frames, num_frames):
        references.extend([frames] if frames.shape[1] < num_frames else [])
        return encode(vae, frames, num_frames)

    def frames(conditioning):
        references.clear()
        windows = run.generate(model, run.audio(model, 21), conditioning, recipe=Recipe.INFINITETALK)
        return torch.cat(list(windows), 1), len(references)

    monkeypatch.setattr(type(still.vae), "encode_padded", count_and_encode)
    (of_still, once), (of_video, often) = frames(still), frames(video)
    assert torch.equal(of_still, of_video) and (once, often) == (1, 4)


def test_cancelling_ends_between_two_decoded_chunks(model, monkeypatch):
    host, chunks = run.RecordingHost(), []
    conditioning = run.conditioning(model)
    decode = type(conditioning.vae).decode

    def cancelled(vae, latents):
        for chunk in decode(vae, latents):
            host.cancel_after = 0
            chunks.append(chunk)
            yield chunk

    monkeypatch.setattr(type(conditioning.vae), "decode", cancelled)
    with pytest.raises(KeyboardInterrupt):
        frames_of(model, 9, host=host)
    assert len(chunks) == 1


def test_progress_never_goes_back_and_ends_at_one(model):
    host = run.RecordingHost()
    frames_of(model, 13, host=host)
    fractions = [progress.fraction for progress in host.progress]
    assert fractions == sorted(fractions) and fractions[-1] == 1
    assert {progress.num_windows for progress in host.progress} == {2}


def test_every_step_of_every_window_is_told_and_every_finished_window_shown(model):
    host = run.RecordingHost()
    frames = frames_of(model, 13, host=host, config=run.config(steps=3))
    steps = [(progress.window, progress.step) for progress in host.progress if progress.step]
    assert steps == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3)]
    first, second = (preview.frames for preview in host.previews if isinstance(preview, FramePreview))
    assert torch.equal(first, frames[:, :9]) and torch.equal(second[:, -4:], frames[:, 9:])
    assert {preview.pictures().shape[1:] for preview in host.previews} == {(3, 4, 6), (3, run.HEIGHT, run.WIDTH)}


def test_bad_numbers_stop_the_run_with_a_cause(model):
    audio = run.audio(model, 9)
    audio.features[:] = float("nan")
    with pytest.raises(NumericalError, match="not finite after the first step"):
        frames_of(model, 9, audio=audio)


def test_what_does_not_fit_is_told_before_a_network_runs(model, monkeypatch):
    monkeypatch.setattr(model, "forward", lambda *args: pytest.fail("a network ran"))
    wrong = run.audio(model, 9)
    wrong = dataclasses.replace(wrong, features=wrong.features[..., :3])
    with pytest.raises(ConfigError, match="the audio weights take"):
        next(run.generate(model, wrong, run.conditioning(model)))
    conditioning = run.conditioning(model)
    long, wide = torch.zeros(model.config.text_len + 1, model.config.text_dim), torch.zeros(5, 3)
    for changes, message in (
        ({"prompt_embeds": (*conditioning.prompt_embeds, long)}, "A prompt has .* tokens"),  # of the second window
        ({"negative_embeds": wide}, "The tokens of the prompt have 3 channels"),
        ({"image_embeds": wide}, "The tokens of the image have 3 channels"),
    ):
        with pytest.raises(ConfigError, match=message):
            next(run.generate(model, run.audio(model, 13), dataclasses.replace(conditioning, **changes)))
    with pytest.raises(ConfigError, match="2 voices need as many places"):
        next(run.generate(model, run.audio(model, 9, 2), run.conditioning(model)))
