"""The price to the cent, the ranges, and the identity of a job."""

import subprocess
import sys
from dataclasses import replace

import pytest
from multitalk_pack.pipeline.config import Resolution
from multitalk_pack.pipeline.errors import ConfigError
from multitalk_pack.pipeline.remote import payload
from multitalk_pack.pipeline.remote.media import Media
from support.remote import make_request


@pytest.mark.parametrize(
    ("num_frames", "usd"), [(41, 0.328), (81, 0.648), (82, 0.82), (85, 0.85), (145, 1.45), (241, 2.41)]
)
def test_the_price_is_the_cards(num_frames, usd):
    price = payload.AI_AVATAR.price
    assert payload.estimate(price, num_frames, Resolution.P480) == payload.PriceEstimate(usd, usd)
    assert payload.estimate(price, num_frames, Resolution.P720) == payload.PriceEstimate(usd, pytest.approx(2 * usd))


def test_infinitalk_knows_no_step_in_its_price():
    assert payload.estimate(payload.INFINITALK.price, 145, Resolution.P480).usd == pytest.approx(1.16)


def test_the_estimate_reads_as_a_person_would_say_it():
    assert str(make_request().estimate) == "about $1.45"
    assert str(make_request(resolution=Resolution.P720).estimate) == "about $1.45, or $2.90 if 720p counts double"
    assert str(make_request(num_frames=41).estimate) == "about $0.328"


def test_every_row_of_the_table_dates_its_price_and_takes_its_default():
    for endpoint in payload.ENDPOINTS.values():
        assert payload.ENDPOINT_PATTERN.fullmatch(endpoint.id)
        assert len(endpoint.price.as_of) == len("2026-08-01")
        assert endpoint.default_num_frames in endpoint.num_frames
    assert {"fal-ai/ai-avatar", "fal-ai/ai-avatar/multi", "fal-ai/infinitalk"} <= set(payload.ENDPOINTS)


def test_the_arguments_are_the_cards_and_never_null():
    urls = {"image_url": "https://v3.fal.media/i", "audio_url": "https://v3.fal.media/a"}
    assert make_request(seed=7).arguments(urls) == {
        **urls,
        "prompt": "a woman talks",
        "num_frames": 145,
        "resolution": "480p",
        "seed": 7,
        "acceleration": "regular",
    }


@pytest.mark.parametrize("num_frames", [40, 242])
def test_a_length_outside_the_range_is_refused(num_frames):
    with pytest.raises(ConfigError, match=r"41\.\.241"):
        make_request(num_frames=num_frames)


def test_an_empty_prompt_and_a_seed_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="prompt is empty"):
        make_request(prompt=" \n")
    with pytest.raises(ConfigError, match="seed"):
        make_request(seed=2**31)


def test_two_speakers_take_two_sounds_and_may_do_with_one():
    sounds = make_request().media
    first = {"image_url": sounds["image_url"], "first_audio_url": sounds["audio_url"]}
    request = replace(make_request(), endpoint=payload.MULTI, media=first)
    assert replace(request, media={**first, "second_audio_url": sounds["audio_url"]}).media.keys() > first.keys()
    with pytest.raises(ConfigError, match="got audio_url, image_url"):
        replace(request, media=sounds)


def test_text_to_speech_takes_words_in_place_of_sound():
    endpoint = payload.ENDPOINTS["fal-ai/ai-avatar/single-text"]
    portrait = {"image_url": make_request().media["image_url"]}
    texts = {"text_input": "Hello.", "voice": "Aria"}
    request = replace(make_request(), endpoint=endpoint, media=portrait, texts=texts)
    assert request.arguments({"image_url": "u"})["text_input"] == "Hello."


def test_another_input_or_account_is_another_job():
    request = make_request()
    keys = {
        request.job_key("00000000"),
        request.job_key("00000001"),
        make_request(prompt="a man talks").job_key("00000000"),
        make_request(num_frames=81).job_key("00000000"),
        make_request(shade=0.6).job_key("00000000"),
        make_request(seed=43).job_key("00000000"),
        replace(request, endpoint=payload.INFINITALK).job_key("00000000"),
    }
    assert len(keys) == 7
    assert make_request().job_key("00000000") in keys


def test_the_job_key_is_the_same_in_every_process():
    code = (
        "import sys, runpy; runpy.run_path(sys.argv[1]);"
        "from support.remote import make_request; print(make_request().job_key('00000000'))"
    )
    conftest = __file__.replace("pipeline/remote/test_payload.py", "conftest.py")
    told = subprocess.run([sys.executable, "-c", code, conftest], capture_output=True, text=True, check=True).stdout
    assert told.strip() == make_request().job_key("00000000")


def test_the_endpoint_can_be_renamed_from_outside():
    environ = {payload.ENDPOINT_VARIABLE: "fal-ai/multitalk/v2"}
    moved = payload.endpoint_named("fal-ai/ai-avatar", environ)
    assert (moved.id, moved.files) == ("fal-ai/multitalk/v2", payload.AI_AVATAR.files)
    assert (
        payload.endpoint_named("fal-ai/ai-avatar", {payload.ENDPOINT_VARIABLE: payload.INFINITALK.id})
        == payload.INFINITALK
    )
    with pytest.raises(ConfigError, match="must read like"):
        payload.endpoint_named("fal-ai/ai-avatar", {payload.ENDPOINT_VARIABLE: "https://evil.example/x"})


def test_media_of_the_same_bytes_and_another_type_differ():
    assert Media(b"x", "image/png", "a").sha256 != Media(b"x", "image/jpeg", "a").sha256
