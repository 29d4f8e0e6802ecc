"""Prices to the cent, ranges, the exact request of each endpoint, and the identity of a job."""

import re
import subprocess
import sys
from dataclasses import replace

import pytest
from multitalk_pack.pipeline.config import Resolution
from multitalk_pack.pipeline.errors import ConfigError
from multitalk_pack.pipeline.remote import endpoints, pricing
from multitalk_pack.pipeline.remote.endpoints import AI_AVATAR, ENDPOINTS, FLASHTALK, INFINITALK, MULTI, find_endpoint
from multitalk_pack.pipeline.remote.media import Media
from multitalk_pack.pipeline.remote.pricing import PriceEstimate
from support.remote import make_request


@pytest.mark.parametrize(
    ("num_frames", "usd"), [(41, 0.328), (81, 0.648), (82, 0.82), (85, 0.85), (145, 1.45), (241, 2.41)]
)
def test_the_price_is_the_cards(num_frames, usd):
    at_480p = pricing.estimate(AI_AVATAR.price, num_frames / 25, Resolution.P480)
    assert at_480p == PriceEstimate(usd, usd)
    at_720p = pricing.estimate(AI_AVATAR.price, num_frames / 25, Resolution.P720)
    assert at_720p == PriceEstimate(usd, pytest.approx(2 * usd))


# Of clips of 1, 5.8, 9.64 and 28 seconds; by hand: frames / 25 * rate (* 1.25 above 81 frames, request by request).
CLIP_PRICES = {
    AI_AVATAR: (0.328, 1.45, 2.41, 2 * 2.41 + 2.21),  # at least 41 frames; 28 s are 241 + 241 + 221
    MULTI: (0.328, 1.45, 2.41, 2 * 2.41 + 2.21),
    INFINITALK: (0.328, 1.16, 1.928, 701 / 25 * 0.2),  # 28 s are one request
    FLASHTALK: (0.02, 0.116, 0.1928, 0.56),  # as long as the sound
}


@pytest.mark.parametrize("endpoint", CLIP_PRICES, ids=lambda endpoint: endpoint.id)
def test_a_clip_costs_what_its_requests_cost(endpoint):
    prices = [endpoint.estimate(duration_s, Resolution.P480).usd for duration_s in (1, 5.8, 9.64, 28)]
    assert prices == pytest.approx(CLIP_PRICES[endpoint], abs=1e-4)
    doubled = endpoint.estimate(5.8, Resolution.P720)
    assert doubled.usd_at_most == pytest.approx(doubled.usd * (1 if endpoint is FLASHTALK else 2))


def test_what_the_clip_costs_elsewhere_is_told():
    text = endpoints.alternatives(FLASHTALK, 1, 5.8, Resolution.P480)
    assert text == "fal-ai/ai-avatar about $1.45, fal-ai/ai-avatar/multi about $1.45, fal-ai/infinitalk about $1.16"
    assert "fal-ai/flashtalk about $0.116" in endpoints.alternatives(AI_AVATAR, 1, 5.8, Resolution.P480)
    assert endpoints.alternatives(MULTI, 2, 5.8, Resolution.P480) == ""


def test_the_estimate_reads_as_a_person_would_say_it():
    assert str(make_request().estimate) == "about $1.45"
    assert str(make_request(resolution=Resolution.P720).estimate) == "about $1.45, or $2.90 if 720p counts double"
    assert str(make_request(num_frames=41).estimate) == "about $0.328"


def test_every_row_of_the_table_dates_its_price_and_can_be_bought():
    for endpoint in ENDPOINTS.values():
        assert endpoints.ENDPOINT_PATTERN.fullmatch(endpoint.id)
        assert re.fullmatch(r"\d{4}-\d\d(-\d\d)?", endpoint.price.as_of)
        num_frames = 145 if endpoint.num_frames is None else endpoint.num_frames[0]
        assert make_request(endpoint=endpoint, num_frames=num_frames).estimate.usd > 0
    assert list(ENDPOINTS) == ["fal-ai/ai-avatar", "fal-ai/ai-avatar/multi", "fal-ai/infinitalk", "fal-ai/flashtalk"]
    assert set(ENDPOINTS) < set(endpoints.COLLECTABLE)
    assert (endpoints.LENGTHS[0], endpoints.LENGTHS[-1]) == (41, 721)


CARD_CHOICES = {
    "prompt": "a woman talks",
    "num_frames": 145,
    "resolution": "480p",
    "seed": 7,
    "acceleration": "regular",
}
ARGUMENTS = {
    AI_AVATAR: {"image_url": "i", "audio_url": "a", **CARD_CHOICES},
    MULTI: {"image_url": "i", "first_audio_url": "a", **CARD_CHOICES},
    INFINITALK: {"image_url": "i", "audio_url": "a", **CARD_CHOICES},
    FLASHTALK: {"image_url": "i", "audio_url": "a", "seed": 7},
}


@pytest.mark.parametrize("endpoint", ARGUMENTS, ids=lambda endpoint: endpoint.id)
def test_the_arguments_are_the_cards_and_never_null(endpoint):
    request = make_request(endpoint=endpoint, seed=7)
    assert request.arguments({"image_url": "i", endpoint.voices[0]: "a"}) == ARGUMENTS[endpoint]


@pytest.mark.parametrize(
    ("endpoint", "num_frames"), [(AI_AVATAR, 40), (AI_AVATAR, 242), (INFINITALK, 40), (INFINITALK, 722)]
)
def test_a_length_outside_the_range_is_refused(endpoint, num_frames):
    with pytest.raises(ConfigError, match=rf"41\.\.{endpoint.num_frames[-1]} .*got {num_frames}"):
        make_request(endpoint=endpoint, num_frames=num_frames)


@pytest.mark.parametrize("num_frames", [41, 241, 721])
def test_a_length_of_infinitalk_is_one_request(num_frames):
    assert make_request(endpoint=INFINITALK, num_frames=num_frames).num_frames == num_frames


@pytest.mark.parametrize("prompt", [" \n", "a \ud800 woman", "\udfff"])
def test_a_prompt_that_cannot_be_sent_is_refused_where_the_endpoint_takes_one(prompt):
    with pytest.raises(ConfigError, match="The prompt"):
        make_request(prompt=prompt)
    assert "prompt" not in make_request(prompt=prompt, endpoint=FLASHTALK).arguments({})


def test_a_seed_out_of_range_is_refused():
    with pytest.raises(ConfigError, match="seed"):
        make_request(seed=2**31)


def test_another_input_or_account_is_another_job():
    request = make_request()
    keys = {
        request.job_key("00000000"),
        request.job_key("00000001"),
        make_request(prompt="a man talks").job_key("00000000"),
        make_request(num_frames=81).job_key("00000000"),
        make_request(shade=0.6).job_key("00000000"),
        make_request(seed=43).job_key("00000000"),
        replace(request, endpoint=INFINITALK).job_key("00000000"),
    }
    assert len(keys) == 7
    assert make_request().job_key("00000000") in keys


def test_the_content_of_a_job_is_the_same_for_every_account():
    assert make_request().content_key == make_request().content_key != make_request(seed=43).content_key


def test_the_job_key_is_the_same_in_every_process():
    code = (
        "import sys, runpy; runpy.run_path(sys.argv[1]);"
        "from support.remote import make_request; print(make_request().job_key('00000000'))"
    )
    conftest = __file__.replace("pipeline/remote/test_endpoints.py", "conftest.py")
    output = subprocess.run([sys.executable, "-c", code, conftest], capture_output=True, text=True, check=True).stdout
    assert output.strip() == make_request().job_key("00000000")


def test_videos_that_were_bought_by_older_versions_keep_their_keys():
    assert make_request().job_key("00000000") == "230bd796c17b5a91d1fbc8cacb9a4cd978a96f1d4f5189a94c43f31410ff4233"


def test_the_endpoint_can_be_renamed_from_outside():
    environ = {endpoints.ENDPOINT_VARIABLE: "fal-ai/multitalk/v2"}
    assert find_endpoint("fal-ai/ai-avatar", environ) == replace(AI_AVATAR, id="fal-ai/multitalk/v2")
    assert find_endpoint("fal-ai/ai-avatar", {endpoints.ENDPOINT_VARIABLE: INFINITALK.id}) == INFINITALK
    with pytest.raises(ConfigError, match="must read like"):
        find_endpoint("fal-ai/ai-avatar", {endpoints.ENDPOINT_VARIABLE: "https://evil.example/x"})


def test_media_of_the_same_bytes_and_another_type_differ():
    assert Media(b"x", "image/png", "a").sha256 != Media(b"x", "image/jpeg", "a").sha256
