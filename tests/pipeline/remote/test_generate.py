"""The entry: a picture, voices, a prompt and an endpoint become one request each, priced before anything is sent."""

import json
import wave
from dataclasses import replace
from io import BytesIO

import pytest
import torch
from multitalk_pack.pipeline.audio.waveform import Sound
from multitalk_pack.pipeline.config import Acceleration, GenerationConfig
from multitalk_pack.pipeline.errors import AudioError, ConfigError, RemoteError
from multitalk_pack.pipeline.remote.context import Caps
from multitalk_pack.pipeline.remote.endpoints import AI_AVATAR, ENDPOINTS, FLASHTALK, INFINITALK, MULTI
from multitalk_pack.pipeline.remote.generate import start_request
from support.remote import tone, voice

PICTURE = torch.full((1, 16, 16, 3), 0.5)
CHOICES = {"prompt": "a woman talks", "resolution": "480p", "seed": 7, "acceleration": "none"}
# Frames of the request and dollars, of voices of so many seconds; None: the endpoint's field has no frames.
REQUESTS = {
    (AI_AVATAR, 1.0): (41, 0.328),
    (AI_AVATAR, 5.8): (145, 1.45),
    (AI_AVATAR, 9.64): (241, 2.41),
    (MULTI, 1.0): (41, 0.328),
    (MULTI, 5.8): (145, 1.45),
    (MULTI, 9.64): (241, 2.41),
    (INFINITALK, 1.0): (41, 0.328),
    (INFINITALK, 5.8): (145, 1.16),
    (INFINITALK, 9.64): (241, 1.928),
    (INFINITALK, 28.0): (701, 5.608),
    (FLASHTALK, 1.0): (None, 0.02),
    (FLASHTALK, 5.8): (None, 0.116),
    (FLASHTALK, 9.64): (None, 0.1928),
    (FLASHTALK, 28.0): (None, 0.56),
}


@pytest.fixture
def rich_context(context):
    return replace(context, caps=Caps(run_usd=20))


def request(context, endpoint, *voices, num_frames=0, split=False, prompt="a woman talks"):
    config = GenerationConfig(num_frames, seed=7, acceleration=Acceleration.NONE)
    return start_request(PICTURE, voices, prompt, config, endpoint, context, split=split)


def body(fal) -> dict:
    (submit,) = fal.submits
    return json.loads(submit.body)


def uploaded_s(fal, url: str) -> float:
    """Length of a WAV that was uploaded."""
    with wave.open(BytesIO(fal.files[url.removeprefix("https://v3.fal.media")])) as file:
        return file.getnframes() / file.getframerate()


@pytest.mark.parametrize(("endpoint", "duration_s"), REQUESTS, ids=lambda value: getattr(value, "id", value))
@pytest.mark.parametrize("split", [False, True])
def test_a_voice_is_one_request_and_one_purchase(fal, rich_context, endpoint, duration_s, split):
    num_frames, usd = REQUESTS[endpoint, duration_s]
    video = request(rich_context, endpoint, voice(duration_s), split=split).result()
    arguments = body(fal)
    assert fal.submits[0].path == f"/{endpoint.id}" and video.estimate.usd == pytest.approx(usd, abs=1e-4)
    sound_s = uploaded_s(fal, arguments.pop(endpoint.voices[0]))
    assert arguments.pop("image_url").endswith("/portrait.png")
    if num_frames is None:
        assert arguments == {"seed": 7} and sound_s == pytest.approx(duration_s)
    else:
        assert arguments == {**CHOICES, "num_frames": num_frames} and duration_s <= sound_s <= num_frames / 25 + 0.5
    request(rich_context, endpoint, voice(duration_s), split=split).result()
    assert len(fal.submits) == 1


@pytest.mark.parametrize("endpoint", [AI_AVATAR, MULTI], ids=lambda endpoint: endpoint.id)
def test_a_voice_beyond_one_request_is_split_or_refused(fal, rich_context, endpoint):
    with pytest.raises(ConfigError, match=r"41\.\.241 frames in one request, got 701.*split long audio"):
        request(rich_context, endpoint, voice(28)).result()
    assert fal.log == []
    video = request(rich_context, endpoint, voice(28), split=True).result()
    assert len(fal.submits) >= 3 and video.estimate.usd == pytest.approx(7.03, abs=0.45)


def test_two_voices_go_to_two_fields(fal, context):
    request(context, MULTI, voice(2), voice(3)).result()
    arguments = body(fal)
    assert arguments["num_frames"] == 125 and uploaded_s(fal, arguments["second_audio_url"]) == pytest.approx(3)
    assert arguments["first_audio_url"].endswith("/speech.wav")
    assert arguments["second_audio_url"].endswith("/speech_2.wav")


@pytest.mark.parametrize("endpoint", [AI_AVATAR, INFINITALK, FLASHTALK], ids=lambda endpoint: endpoint.id)
def test_two_voices_are_refused_where_one_is_taken(fal, context, endpoint):
    with pytest.raises(ConfigError, match=rf"{endpoint.id} takes one voice, got 2. Choose fal-ai/ai-avatar/multi"):
        request(context, endpoint, voice(2), voice(3)).result()
    assert fal.log == []


def test_two_voices_are_not_split_and_none_is_no_request(fal, context):
    with pytest.raises(ConfigError, match="Only one voice can be split"):
        request(context, MULTI, voice(2), voice(3), split=True).result()
    with pytest.raises(ConfigError, match="There is no voice"):
        request(context, AI_AVATAR).result()
    assert fal.log == []


@pytest.mark.parametrize("endpoint", ENDPOINTS.values(), ids=ENDPOINTS)
def test_price_and_inputs_are_said_before_anything_is_sent(fal, context, endpoint, caplog):
    fal.fault("^POST rest", "status", times=99, status=401)
    job = request(context, endpoint, voice(5.8), num_frames=145)
    with pytest.raises(RemoteError):
        job.result()
    price, *others = job.monitor.notes
    assert price.startswith(f"5.80 s at {endpoint.id}: {endpoint.estimate(5.8, GenerationConfig().resolution)}.")
    assert all(f"{other.id} about $" in price for other in ENDPOINTS.values() if other is not endpoint)
    assert price in caplog.text and (endpoint is FLASHTALK) == any("not sent" in note for note in others)
    if endpoint is FLASHTALK:
        assert others == [
            "fal-ai/flashtalk takes image, audio, seed; prompt, num_frames, resolution, acceleration are not sent."
        ]


def test_a_voice_longer_than_the_video_is_said_with_both_lengths(fal, context):
    job = request(context, AI_AVATAR, voice(11.8), num_frames=145)
    video = job.result()
    warning = "The sound (11.80 s) is longer than the video (5.80 s, 145 frames): its end is cut off."
    assert any(note.startswith(warning) for note in job.monitor.notes) and warning in video.info


def test_a_voice_shorter_than_the_video_is_said(fal, context):
    assert "The sound (1.00 s) is shorter than the video (5.80 s)." in (
        request(context, AI_AVATAR, voice(1), num_frames=145).result().info
    )


@pytest.mark.parametrize("num_frames", [0, 145])
def test_a_voice_that_fits_needs_no_word(fal, context, num_frames):
    assert len(request(context, AI_AVATAR, voice(5.8), num_frames=num_frames).result().notes) == 1


def test_flashtalk_is_as_long_as_the_sound_whatever_num_frames_says(fal, context):
    video = request(context, FLASHTALK, voice(11.8), num_frames=145, prompt="").result()
    assert video.estimate.usd == pytest.approx(0.236) and "longer than the video" not in video.info


def test_silence_is_not_paid_for(fal, context):
    with pytest.raises(AudioError, match="silent"):
        request(context, AI_AVATAR, Sound(torch.zeros(2, 40_000), 8000), num_frames=145).result()
    assert fal.log == []


def test_channels_that_cancel_each_other_are_not_sent_as_silence(fal, context):
    speech = tone(5.8)[0]
    request(context, AI_AVATAR, Sound(torch.cat([speech, -speech]), 8000), num_frames=145).result()
    url = body(fal)["audio_url"]
    with wave.open(BytesIO(fal.files[url.removeprefix("https://v3.fal.media")])) as file:
        assert file.getnchannels() == 1 and max(file.readframes(1000)) > 0


@pytest.mark.parametrize(
    "sound",
    [Sound(torch.zeros(1, 0), 8000), Sound(torch.full((1, 8000), torch.nan), 8000), Sound(torch.ones(1, 8000), 0)],
    ids=["empty", "NaN", "no rate"],
)
def test_what_is_no_sound_is_refused(fal, context, sound):
    with pytest.raises(AudioError):
        request(context, AI_AVATAR, sound, num_frames=41).result()
    assert fal.log == []


@pytest.mark.parametrize(("endpoint", "split"), [(FLASHTALK, False), (INFINITALK, True), (INFINITALK, False)])
def test_a_video_as_long_as_its_sound_stops_at_five_dollars_unless_a_cap_says_otherwise(fal, context, endpoint, split):
    duration_s = 260 if endpoint is FLASHTALK else 28
    context = replace(context, caps=Caps())
    with pytest.raises(RemoteError, match=r"MULTITALK_FAL_MAX_USD allows \$5\.00"):
        request(context, endpoint, voice(duration_s), split=split).result()
    assert not fal.submits
    if endpoint is INFINITALK:
        request(context, endpoint, voice(28), num_frames=701).result()
        assert len(fal.submits) == 1
