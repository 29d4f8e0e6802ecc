"""Values that other packs' nodes can hand over: each is used, or refused in a sentence that says what came."""

import asyncio
import inspect
import math
import sys

import pytest
import torch
from support import pack
from support.workflow_files import write_models

WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
NAN, INF = math.nan, math.inf


def zeros(*shape, **options):
    return torch.zeros(*shape, **options)


def noise(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def audio(waveform, sample_rate=16000):
    return {"waveform": waveform, "sample_rate": sample_rate}


VOICE = 0.6 * noise(1, 1, 8000) - 0.3
IMAGE = noise(1, 64, 64, 3)
TOKENS = noise(1, 7, 64)


class SubclassOfDict(dict):
    """As packs that load sound lazily have them."""


SOUNDS = {
    "empty dict": {}, "None": None, "tuple": (1, 2), "text": "sound", "subclass of dict": SubclassOfDict(audio(VOICE)),
    "no rate": {"waveform": VOICE}, "no waveform": {"sample_rate": 16000}, "rate None": audio(VOICE, None),
    "rate text": audio(VOICE, "x"), "rate NaN": audio(VOICE, NAN), "rate inf": audio(VOICE, INF),
    "rate 0": audio(VOICE, 0), "rate -1": audio(VOICE, -1), "rate 1": audio(VOICE, 1), "rate 2^40": audio(VOICE, 2**40),
    "rate 2^62": audio(VOICE, 2**62), "rate float": audio(VOICE, 16000.0), "rate True": audio(VOICE, True),
    "waveform list": audio([[0.0]]), "waveform None": audio(None), "0-d": audio(torch.tensor(1.0)),
    "1-d": audio(VOICE[0, 0]), "2-d": audio(VOICE[0]), "4-d": audio(VOICE[None]), "empty": audio(zeros(1, 1, 0)),
    "empty batch": audio(zeros(0, 1, 100)), "no channel": audio(zeros(1, 0, 100)), "one sample": audio(noise(1, 1, 1)),
    "int16": audio((VOICE * 32767).short()), "uint8": audio((VOICE * 127 + 128).byte()),
    "floats of int16": audio(VOICE * 32767), "float64": audio(VOICE.double()), "bfloat16": audio(VOICE.bfloat16()),
    "bool": audio(zeros(1, 1, 8000, dtype=torch.bool)), "complex": audio(VOICE.to(torch.complex64)),
    "NaN": audio(torch.full((1, 1, 8000), NAN)), "inf": audio(torch.full((1, 1, 8000), INF)),
    "1e30": audio(torch.full((1, 1, 8000), 1e30)), "64 channels": audio(noise(1, 64, 8000) - 0.5),
    "8000 channels": audio(noise(8000, 2)), "batch of two": audio(VOICE.expand(2, 2, -1)),
    "gradients": audio(VOICE.clone().requires_grad_()),
}  # fmt: skip
PICTURES = {
    "None": None, "list": [IMAGE], "text": "image", "3-d": IMAGE[0], "2-d": IMAGE[0, 0], "5-d": IMAGE[None],
    "empty batch": zeros(0, 64, 64, 3), "no channel": zeros(1, 64, 64, 0), "1 channel": noise(1, 64, 64, 1),
    "2 channels": noise(1, 64, 64, 2), "4 channels": noise(1, 64, 64, 4), "5 channels": noise(1, 64, 64, 5),
    "NaN": torch.full((1, 64, 64, 3), NAN), "inf": torch.full((1, 64, 64, 3), INF), "-1..1": IMAGE * 2 - 1,
    "0..255": IMAGE * 255, "uint8": (IMAGE * 255).byte(), "int32": zeros(1, 64, 64, 3, dtype=torch.int32),
    "float16": IMAGE.half(), "bool": zeros(1, 64, 64, 3, dtype=torch.bool), "1x1": noise(1, 1, 1, 3),
    "1x100000": noise(1, 1, 100_000, 3), "16x100000": noise(1, 16, 100_000, 3),
    "gradients": IMAGE.clone().requires_grad_(),
}  # fmt: skip
PROMPTS = {
    "empty": [], "dict": {"a": 1}, "text": "abc", "tensor": TOKENS, "flat": [TOKENS], "None inside": [[None, {}]],
    "empty inside": [[]], "0-d": [[torch.tensor(1.0), {}]], "1-d": [[noise(7), {}]], "2-d": [[TOKENS[0], {}]],
    "4-d": [[TOKENS[None], {}]], "no rows": [[zeros(1, 0, 64), {}]], "no batch": [[zeros(0, 7, 64), {}]],
    "ints": [[torch.ones(1, 7, 64, dtype=torch.long), {}]], "NaN": [[torch.full((1, 7, 64), NAN), {}]],
    "all zero": [[zeros(1, 512, 64), {}]], "two": [[TOKENS, {}], [TOKENS, {}]], "half": [[TOKENS.half(), {}]],
    "complex": [[TOKENS.to(torch.complex64), {}]],
}  # fmt: skip
MASKS = {
    "0-d": torch.tensor(1.0), "1-d": zeros(5), "4-d": zeros(1, 2, 64, 64), "empty batch": zeros(0, 64, 64),
    "0x0": zeros(2, 0, 0), "NaN": torch.full((2, 64, 64), NAN), "bool": torch.ones(2, 64, 64, dtype=torch.bool),
    "other size": noise(2, 7, 9), "list": [zeros(64, 64)], "text": "mask",
    "complex": zeros(2, 64, 64).to(torch.complex64),
    "of a video's frames": torch.ones(9, 64, 64), "one": torch.ones(64, 64),
}  # fmt: skip
EMBEDS = {
    "None": None, "empty": {}, "text": "abc", "features None": {"audio_features": None},
    "empty list": {"audio_features": []}, "number": {"audio_features": 5}, "text inside": {"audio_features": "abc"},
    "0-d": {"audio_features": torch.tensor(1.0)}, "list of 0-d": {"audio_features": [torch.tensor(1.0)]},
    "lists of lists": {"audio_features": [[0.0]]}, "2-d": {"audio_features": [zeros(10, 768)]},
    "NaN": {"audio_features": [torch.full((10, 12, 768), NAN)]}, "no frame": {"audio_features": [zeros(0, 12, 768)]},
    "other layers": {"audio_features": [zeros(10, 12, 768), zeros(10, 11, 768)]},
    "other lengths": {"audio_features": [zeros(10, 12, 768), zeros(9, 12, 768)]},
    "ints": {"audio_features": [zeros(10, 12, 768, dtype=torch.int8)]},
    "complex": {"audio_features": [zeros(4, 12, 768).to(torch.complex64)]},
    "hundred people": {"audio_features": [zeros(4, 12, 768)] * 100}, "a tensor": {"audio_features": zeros(4, 12, 768)},
}  # fmt: skip
SPEAKERS = {
    "list": [1, 2], "tuple of numbers": (1, 2), "text": "speakers", "number": 3, "empty": (), "dict": {"a": 1},
}  # fmt: skip
STARTS = ["nan", "inf", "1e308", "-0.0", "0x10", "1_0", "٣", "0,", ",", "0;1", "1e400", " ", "9" * 400, "-1"]
NUMBERS = [{"fps": NAN}, {"fps": INF}, {"fps": 0.0}, {"num_frames": 10**9}, {"num_frames": -1}]
BOXES = [{"left": NAN}, {"right": INF}, {"left": 60.0, "right": 10.0}, {"top": -INF}]


def cases(**tables):
    """Every value of the tables, as arguments of a node."""
    return [
        pytest.param({name: value}, id=f"{name} {label}")
        for name, table in tables.items()
        for label, value in table.items()
    ]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    folders = tmp_path_factory.mktemp("models"), tmp_path_factory.mktemp("work")
    nodes = pack.node_classes(pack.load(*folders))
    write_models(folders[0])
    return nodes


@pytest.fixture(scope="module")
def load(nodes):
    """Output of a loader for its first file."""

    def load(name):
        inputs = [item for item in nodes[name].GET_SCHEMA().inputs if not item.optional]
        values = {item.id: item.choices[0] if item.io_type == "COMBO" else item.default for item in inputs}
        return nodes[name].execute(**values).args[0]

    return load


@pytest.fixture
def execute(nodes):
    """Executes a node with its widgets' defaults; None where it says in a sentence what came that it does not take."""
    error = sys.modules[f"{pack.NAME}.pipeline.errors"].MultiTalkError

    def execute(name, **inputs):
        schema = nodes[name].GET_SCHEMA()
        widgets = {item.id: item.default for item in schema.inputs if not item.optional and item.io_type in WIDGETS}
        try:
            output = nodes[name].execute(**widgets | inputs)
            return asyncio.run(output) if inspect.iscoroutine(output) else output
        except error as refusal:
            text = str(refusal)
            assert text.strip().endswith((".", ")")) and len(text.splitlines()) == 1 and len(text) < 400, text
            return None

    return execute


@pytest.mark.parametrize("inputs", cases(audio_1=SOUNDS, audio_2=SOUNDS, soundtrack=SOUNDS))
def test_sounds(execute, load, inputs):
    encoder = load("MultiTalkLoadAudioEncoder")
    inputs = {"audio_encoder": encoder, "audio_1": audio(VOICE), "num_frames": 5} | inputs
    execute("MultiTalkEncodeAudio", **inputs)


@pytest.mark.parametrize("inputs", [{"start_times": text} for text in STARTS] + NUMBERS)
def test_numbers_of_a_sound(execute, load, inputs):
    encoder = load("MultiTalkLoadAudioEncoder")
    execute("MultiTalkEncodeAudio", audio_encoder=encoder, audio_1=audio(VOICE), **inputs)


ONE_RECORDING = ["1-d", "2-d", "int16", "uint8", "floats of int16", "float64", "bfloat16", "rate float"]


@pytest.mark.parametrize("name", ONE_RECORDING)
def test_one_recording_in_any_form_is_the_same_sound(nodes, load, name):
    module = sys.modules[f"{pack.NAME}.nodes.conversions"]
    sound = module.from_audio(SOUNDS[name], "audio_1")
    assert (sound.rate_hz, sound.samples.dtype) == (16000, torch.float32)
    assert torch.allclose(sound.samples, VOICE[0], atol=0.02)


@pytest.mark.parametrize("inputs", cases(multitalk_embeds=EMBEDS))
def test_embeds(execute, inputs):
    execute("MultiTalkEmbedsFromKijai", **inputs)


@pytest.mark.parametrize("inputs", [*cases(mask=MASKS, speakers=SPEAKERS), *BOXES])
def test_speakers(execute, inputs):
    execute("MultiTalkSpeaker", **{"left": 0.0, "top": 0.0, "right": 50.0, "bottom": 100.0} | inputs)


CONDITIONS = cases(
    image=PICTURES, positive=PROMPTS, negative=PROMPTS, ref_target_masks=MASKS, speakers=SPEAKERS,
    vae={"text": "vae", "None": None, "dict": {}}, image_encoder={"text": "clip", "None": None, "dict": {}},
    text_encoder={"object": object(), "text": "umt5"}, dub_video={"many": True},
    source_fps={"NaN": NAN, "0": 0.0, "inf": INF},
)  # fmt: skip


@pytest.mark.parametrize("inputs", CONDITIONS)
def test_conditions(execute, load, inputs):
    usual = {
        "image": IMAGE, "vae": load("MultiTalkLoadVAE"), "image_encoder": load("MultiTalkLoadImageEncoder"),
        "positive": [[TOKENS, {}]], "negative": [[TOKENS, {}]], "resolution": "custom", "width": 64, "height": 64,
    }  # fmt: skip
    if "text_encoder" in inputs:
        usual["positive"] = None
    if "dub_video" in inputs or "source_fps" in inputs:
        usual |= {"image": noise(5, 64, 64, 3), "dub_video": True}
    execute("MultiTalkCondition", **usual | inputs)


PURCHASES = cases(
    image=PICTURES, audio=SOUNDS, audio_2=SOUNDS, prompt={"None": None, "number": 3, "half a character": "\ud800"},
    num_frames={"42": 42, "-1": -1, "0": 0, "10^9": 10**9}, seed={"2^70": 2**70, "-1": -1},
    resolution={"unknown": "1080p"}, endpoint={"unknown": "fal-ai/evil"}, resume={"unknown": "buy"},
    acceleration={"unknown": "most"}, long_audio={"unknown": "loop", "split": "split at pauses"},
)  # fmt: skip


@pytest.fixture
def no_dollars(monkeypatch):
    """A key, and a cap at which nothing is bought."""
    for name in ("FAL_KEY", "MULTITALK_FAL_MAX_USD", "HTTPS_PROXY"):
        value = {"FAL_KEY": "abcdefgh-0000:12345678", "MULTITALK_FAL_MAX_USD": "0"}.get(name, "http://127.0.0.1:1")
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("inputs", PURCHASES)
def test_purchases(execute, no_dollars, inputs):
    pytest.importorskip("fal_client")
    usual = {"image": IMAGE, "audio": audio(VOICE), "prompt": "a woman talks", "num_frames": 81}
    assert execute("MultiTalkFal", **usual | inputs) is None


@pytest.mark.parametrize(
    "inputs", cases(request_id={"None": None, "number": 3, "empty": ""}, endpoint={"unknown": "x"})
)
def test_collections(execute, no_dollars, inputs):
    pytest.importorskip("fal_client")
    assert execute("MultiTalkFalCollect", **{"request_id": "x"} | inputs) is None


@pytest.mark.parametrize("name", ONE_RECORDING)
def test_one_recording_in_any_form_is_one_voice_of_a_purchase(nodes, name):
    module = sys.modules[f"{pack.NAME}.nodes.remote"]
    assert torch.allclose(module._voice(SOUNDS[name], "audio").samples, VOICE[0], atol=0.02)


def test_masks_of_a_videos_frames_are_refused_once(nodes, load):
    module = sys.modules[f"{pack.NAME}.nodes.conversions"]
    with pytest.raises(ValueError, match="ref_target_masks has 9 masks of the same place, as of the frames of a video"):
        module.from_masks(torch.ones(9, 64, 64), "ref_target_masks")
    assert torch.equal(module.from_mask(torch.ones(9, 64, 64), "mask"), torch.ones(64, 64))
