"""Sound, pictures, masks and prompts of any content: used, or refused in a sentence."""

import io
import math
import struct
import wave

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from multitalk_pack.benchmarks.tiny_weights import write_tiny
from multitalk_pack.pipeline.audio.dialogue import Arrangement, Speech, arrange, mix_soundtrack, plan_turns
from multitalk_pack.pipeline.audio.waveform import Sound, check, normalize_loudness, to_mono_16k
from multitalk_pack.pipeline.conditioning.prompts import split_prompts
from multitalk_pack.pipeline.conditioning.reference_image import BUCKETS, bucket, check_size, fit
from multitalk_pack.pipeline.conditioning.speakers import Place, draw_places, speaker_masks
from multitalk_pack.pipeline.config import Resolution
from multitalk_pack.pipeline.errors import Problems
from multitalk_pack.pipeline.media.picture import read_image, to_rgb
from multitalk_pack.pipeline.media.sound import read_sound
from multitalk_pack.pipeline.media.video import VideoWriter, read_video
from multitalk_pack.pipeline.models.text_encoder import clean
from multitalk_pack.pipeline.preflight.checks import check_masks, check_voices
from multitalk_pack.pipeline.weights.build import load_text_encoder
from PIL import Image
from support.fuzz import fuzzed, refuses_in_words

FILLS = st.sampled_from([0.0, 1.0, -1.0, 0.3, 1e-8, 1e8, -1e30, 3e38, math.nan, math.inf, -math.inf])
DTYPES = st.sampled_from(
    [torch.float32, torch.float16, torch.float64, torch.bfloat16, torch.uint8, torch.int16, torch.int64, torch.bool]
)


def noise(shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@st.composite
def tensors(draw, shapes):
    """Noise, or one value, with an odd value in it, of any type."""
    shape = draw(shapes)
    values = noise(shape) if draw(st.booleans()) else torch.full(shape, draw(FILLS))
    if values.numel() and draw(st.booleans()):
        values.flatten()[draw(st.integers(0, values.numel() - 1))] = draw(FILLS)
    return values.nan_to_num().to(draw(DTYPES)) if draw(st.booleans()) else values


SOUNDS = st.builds(
    Sound,
    tensors(
        st.tuples(st.integers(0, 9), st.sampled_from([0, 1, 100, 4000, 20000]))
        | st.lists(st.integers(0, 9), max_size=3)
    ),
    st.integers(-1, 3) | st.sampled_from([0, 100, 7999, 8000, 16000, 22050, 44100, 48000, 192000, 10**6]),
)
STARTS = st.none() | st.floats(-1, 2) | st.sampled_from([math.nan, math.inf])


def mix_voices(sounds, starts, arrangement, num_frames, fps, path):
    """All that is done with voices up to the encoder, and the sound in the file."""
    for sound in sounds:
        if sound is not None:
            check(sound)
    speeches = [Speech(sound, start) for sound, start in zip(sounds, starts, strict=True)]
    check_voices(speeches, arrangement, num_frames, fps, Problems())
    plan_turns(speeches, arrangement)
    for track in arrange(speeches, arrangement):
        assert track.ndim == 1 and track.isfinite().all()
    track = mix_soundtrack(speeches, arrangement, max(1, num_frames), 25)
    with VideoWriter(path, 25, track) as writer:
        writer.add(torch.zeros(3, max(1, num_frames), 16, 16))


def is_small(sound):
    """No hours of sound, as rates far from 16 kHz make of few samples; a misshapen one is small."""
    return sound.samples.ndim != 2 or sound.rate_hz < 1 or (sound.rate_hz >= 100 and sound.duration_s < 30)


@fuzzed
@given(sounds=st.lists(st.none() | SOUNDS, max_size=3), data=st.data())
@example(sounds=[Sound(torch.zeros(1, 0), 16000)], data=None)
@example(sounds=[Sound(torch.full((2, 20000), 3e38), 44100)], data=None)
@example(sounds=[Sound(torch.ones(4000), 8000)], data=None)
@example(sounds=[Sound(torch.ones(1, 4000, dtype=torch.bool), 8000)], data=None)
def test_voices_of_any_shape_rate_and_content(sounds, data, tmp_path):
    starts = [data.draw(STARTS) if data else None for _ in sounds]
    arrangement = data.draw(st.sampled_from(Arrangement)) if data else Arrangement.IN_TURN
    fps = data.draw(st.sampled_from([25, 24, 0, -1, 1e9, math.nan])) if data else 25
    voices = [sound for sound in sounds if sound is None or is_small(sound)]
    refuses_in_words(mix_voices, voices, starts[: len(voices)], arrangement, len(voices), fps, tmp_path / "v.mp4")


@fuzzed
@given(sound=SOUNDS)
def test_one_sound_at_the_rate_of_the_encoder(sound):
    if is_small(sound):
        mono = refuses_in_words(to_mono_16k, sound)
        if mono is not None:
            assert normalize_loudness(mono).shape == mono.shape


def wav(rate_hz, channels, samples):
    data = io.BytesIO()
    with wave.open(data, "wb") as file:
        file.setparams((channels, 2, rate_hz, 0, "NONE", ""))
        file.writeframes(samples)
    return data.getvalue()


def picture_file(kind):
    data = io.BytesIO()
    Image.fromarray((noise((24, 20, 3)) * 255).to(torch.uint8).numpy()).save(data, kind)
    return data.getvalue()


@pytest.fixture(scope="module")
def containers(tmp_path_factory):
    """A small file of each kind."""
    path = tmp_path_factory.mktemp("media") / "v.mp4"
    with VideoWriter(path, 25, Sound(noise((1, 4000)) - 0.5, 16000)) as writer:
        writer.add(noise((3, 4, 16, 16)) * 2 - 1)
    sound = (noise(2000) * 9999).to(torch.int16).numpy().tobytes()
    files = {"mp4": path.read_bytes(), "wav": wav(16000, 2, sound)}
    return files | {kind: picture_file(kind) for kind in ("png", "jpeg", "webp", "gif", "bmp", "tiff")}


EDITS = st.lists(st.tuples(st.integers(0, 2**16), st.binary(min_size=1, max_size=8)), max_size=8)


@fuzzed
@given(kind=st.sampled_from(["mp4", "wav", "png", "jpeg", "webp", "gif", "bmp", "tiff"]), edits=EDITS, data=st.data())
def test_files_with_bytes_changed_or_cut_off(kind, edits, data, containers, tmp_path):
    original = bytearray(containers[kind])
    for position, change in edits:
        position %= len(original)
        original[position : position + len(change)] = change
    path = tmp_path / f"f.{kind}"
    path.write_bytes(original[: data.draw(st.integers(0, len(original)))] if data.draw(st.booleans()) else original)
    refuses_in_words(read_sound, path)
    refuses_in_words(read_image, path)
    refuses_in_words(read_video, path)


def test_tags_in_another_encoding_do_not_matter(tmp_path):
    path, tag = tmp_path / "f.wav", b"INFOINAM" + struct.pack("<I", 4) + b"\xe9\xff\xfe\0"
    data = wav(16000, 1, bytes(3200)) + b"LIST" + struct.pack("<I", len(tag)) + tag
    path.write_bytes(data[:4] + struct.pack("<I", len(data) - 8) + data[8:])
    assert read_sound(path).samples.shape == (1, 1600)


@fuzzed
@given(content=st.binary(max_size=300))
@example(content=b"RIFF" + struct.pack("<I", 2**32 - 1) + b"WAVEfmt ")
@example(content=b"#EXTM3U\n#EXTINF:1,\n/etc/hostname\n")
@example(content=b"ffconcat version 1.0\nfile /etc/hostname\n")
def test_files_of_any_bytes(content, tmp_path):
    path = tmp_path / "f"
    path.write_bytes(content)
    for reader in (read_sound, read_image, read_video):
        refuses_in_words(reader, path)


SIDES = st.integers(0, 40) | st.sampled_from([16, 64, 100])


def fit_picture(image, size):
    levels = to_rgb(image)
    assert levels.dtype == torch.uint8 and levels.shape[2] == 3
    target = size or bucket(*levels.shape[:2], BUCKETS[Resolution.P480])
    if target[0] * target[1] > 200**2:
        target = (64, 48)
    fitted = fit(levels, check_size(*target))
    assert fitted.shape == (3, *target) and fitted.abs().max() <= 1


@fuzzed
@given(
    image=tensors(st.lists(SIDES, max_size=4)), size=st.none() | st.tuples(st.integers(-16, 100), st.integers(-16, 100))
)
@example(image=torch.full((20, 20, 4), math.nan), size=(32, 32))
@example(image=torch.ones(20, 20, 3, dtype=torch.int64), size=None)
@example(image=torch.ones(16, 4000, 1), size=(32, 32))
def test_pictures_of_any_shape_type_and_content(image, size):
    refuses_in_words(fit_picture, image, size)


EDGES = st.floats(-20, 120) | st.sampled_from([math.nan, math.inf, -math.inf, 1e300, -1e300])
BOXES = st.tuples(EDGES, EDGES, EDGES, EDGES)


@st.composite
def places(draw):
    """Arguments of a place, possible or not."""
    return draw(st.none() | tensors(st.lists(SIDES, max_size=3))), draw(st.none() | BOXES), draw(st.booleans())


def make_masks(arguments, image_hw, target):
    accepted = [Place(*place) for place in arguments]
    check_masks(accepted, image_hw, target, Problems())
    masks = speaker_masks(accepted, image_hw, target)
    assert masks.shape == (len(accepted) + 1, *target) and set(masks.unique().tolist()) <= {0.0, 1.0}
    assert draw_places(torch.zeros(*target, 3, dtype=torch.uint8), masks).shape == (*target, 3)


@fuzzed
@given(
    arguments=st.lists(places(), min_size=1, max_size=9),
    image_hw=st.tuples(st.integers(16, 90), st.integers(16, 90)),
    target=st.sampled_from([(32, 32), (16, 160), (64, 48)]),
)
@example(arguments=[(None, None, False)] * 9, image_hw=(16, 16), target=(32, 32))
@example(arguments=[(None, (0.0, 0.0, 1e300, 1e300), False), (None, None, True)], image_hw=(20, 20), target=(32, 32))
@example(arguments=[(torch.ones(20, 20, dtype=torch.complex64), None, False)] * 2, image_hw=(20, 20), target=(32, 32))
def test_places_of_any_kind(arguments, image_hw, target):
    refuses_in_words(make_masks, arguments, image_hw, target)


@pytest.fixture(scope="module")
def text_encoder(tmp_path_factory):
    return load_text_encoder(write_tiny(tmp_path_factory.mktemp("tiny")).text_encoder)


TEXTS = st.text(max_size=200) | st.text(alphabet=st.characters(codec=None, categories=["Cc", "Cs", "Co", "Mn", "Zs"]))


@fuzzed
@given(text=TEXTS)
@example(text="")
@example(text="|||")
@example(text="\0\ud800\udfff\u202e")
@example(text="&amp;" * 3000)
@example(text="word " * 20000)
@example(text="𝔘" * 5000 + "|" * 300)
def test_prompts_of_any_characters_and_length(text, text_encoder):
    for part in split_prompts(text)[:3]:
        tokens = text_encoder.tokenize(part)
        assert 1 <= len(tokens) <= text_encoder.text_len
    clean(text)
    hidden = text_encoder.encode(text[:400])
    assert hidden.ndim == 2 and np.isfinite(hidden.numpy()).all()
