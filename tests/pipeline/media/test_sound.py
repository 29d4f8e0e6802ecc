"""Sound files of every kind, whole, damaged, with gaps, and files that are none."""

import math
import random

import av
import numpy as np
import pytest
import soundfile
import torch
from multitalk_pack.pipeline.audio.waveform import Sound, fit_length, peak_of
from multitalk_pack.pipeline.errors import AudioError, ImageError, RemoteError
from multitalk_pack.pipeline.media import sound as sound_module
from multitalk_pack.pipeline.media.sound import probe_sound, read_sound
from multitalk_pack.pipeline.media.video import read_video
from multitalk_pack.pipeline.remote import media
from support.media import correlation, hum, lag, sweep, write_sound, write_tracks, write_video
from support.peak import linux_only, run_script

LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "4.0", 5: "5.0", 6: "5.1", 7: "7.0", 8: "7.1"}
LOSSLESS = [("wav", "pcm_s16le"), ("wav", "pcm_f32le"), ("flac", "flac")]
LOSSY = [("mp3", "mp3"), ("ogg", "libopus"), ("m4a", "aac"), ("mp4", "aac")]


@pytest.mark.parametrize(("suffix", "codec"), LOSSLESS)
@pytest.mark.parametrize("num_channels", LAYOUTS)
def test_lossless_files_come_back_in_their_rate_and_channels(tmp_path, suffix, codec, num_channels):
    sound = hum(0.2, 48000, num_channels)
    path = write_sound(tmp_path / f"hum.{suffix}", sound, codec, LAYOUTS[num_channels])
    got = read_sound(path)
    assert (got.rate_hz, got.num_channels) == (48000, num_channels)
    assert torch.allclose(got.samples, sound.samples, atol=2**-15)


@pytest.mark.parametrize(("suffix", "codec"), LOSSY)
def test_lossy_files_come_back_without_delay(tmp_path, suffix, codec):
    sound = hum(0.6, 48000, 2)
    assert_same_without_delay(read_sound(write_sound(tmp_path / f"hum.{suffix}", sound, codec, "stereo")), sound)


def test_vorbis_comes_back_without_delay(tmp_path):
    sound = hum(0.6, 48000, 2)
    soundfile.write(tmp_path / "hum.ogg", sound.samples.T.numpy(), sound.rate_hz, format="OGG", subtype="VORBIS")
    assert_same_without_delay(read_sound(tmp_path / "hum.ogg"), sound)


def assert_same_without_delay(got, sound):
    assert (got.rate_hz, got.num_channels) == (sound.rate_hz, sound.num_channels)
    assert abs(got.duration_s - sound.duration_s) < 0.04
    got = fit_length(got.samples, sound.samples.shape[-1])
    assert torch.nn.functional.cosine_similarity(got, sound.samples).min() > 0.99  # 0.4 ms late would be less


def test_a_video_file_is_a_sound_and_starts_with_its_picture(tmp_path):
    sound = hum(0.4, 48000, 1)
    got = read_sound(write_video(tmp_path / "late.mp4", num_frames=20, fps=25, sound=sound, sound_start_s=0.2))
    assert got.duration_s == pytest.approx(0.6, abs=0.03)
    assert got.samples[:, : int(0.19 * 48000)].abs().max() < 1e-3
    assert got.samples[:, int(0.22 * 48000) :].abs().max() > 0.2


def test_a_stream_that_nothing_decodes_is_named(tmp_path):
    path = write_video(tmp_path / "v.mkv", num_frames=20, fps=25, sound=hum(0.8, 48000, 1))
    content = path.read_bytes()
    path.write_bytes(content.replace(b"A_AAC", b"A_ZZZ"))  # a codec of the future
    for read in (read_sound, probe_sound, read_video):
        with pytest.raises(AudioError, match="holds audio that cannot be decoded here"):
            read(path)
    path.write_bytes(content.replace(b"V_MPEG4", b"V_ZZZZZ"))
    assert read_sound(path).duration_s == pytest.approx(0.8, abs=0.05)
    with pytest.raises(ImageError, match="holds no picture that can be decoded"):
        read_video(path)
    with pytest.raises(RemoteError, match="holds no picture"):
        media.probe(path)


def test_a_damaged_file_is_heard_as_far_as_it_goes(tmp_path):
    path = write_sound(tmp_path / "cut.mp3", hum(1, 44100, 1), "mp3", "mono")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + b"\0garbage" * 200)
    assert 0.3 < read_sound(path).duration_s < 0.7


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.wav", None, "There is no file"),
        ("empty.wav", b"", "cannot be read as audio"),
        ("text.wav", b"I only pretend to be a sound.\n" * 50, "cannot be read as audio"),
        ("text.mp3", b"I only pretend to be a sound.\n" * 50, "cannot be read as audio|without a single sample"),
    ],
)
def test_what_is_no_sound_is_refused_in_one_sentence(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(AudioError, match=message):
        read_sound(path)


def test_a_folder_and_an_image_are_refused(tmp_path):
    with pytest.raises(AudioError, match="is a folder, not a file"):
        read_sound(tmp_path)
    av.VideoFrame.from_ndarray(np.zeros((8, 8, 3), np.uint8), "rgb24").to_image().save(tmp_path / "image.png")
    with pytest.raises(AudioError, match="holds no audio"):
        read_sound(tmp_path / "image.png")


def test_a_file_of_no_length_is_refused(tmp_path):
    soundfile.write(tmp_path / "none.wav", np.zeros((0, 1)), 16000)
    with pytest.raises(AudioError, match=r"without a single sample|cannot be read as audio"):
        read_sound(tmp_path / "none.wav")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_file_of_nan_or_infinity_is_refused(tmp_path, bad):
    sound = hum(0.1, 16000, 1)
    sound.samples[0, 800] = bad
    with pytest.raises(AudioError, match=r"bad\.wav holds NaN"):
        read_sound(write_sound(tmp_path / "bad.wav", sound, "pcm_f32le", "mono"))


def concatenate(path, *parts):
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


CODECS = {"mp3": "mp3", "ts": "mp2", "flac": "flac", "oga": "flac", "ac3": "ac3"}


@pytest.mark.parametrize("suffix", CODECS)
@pytest.mark.parametrize(("rate_hz", "num_channels"), [(48000, 1), (44100, 2), (32000, 2)])
def test_a_rate_or_channels_that_change_give_one_sound(tmp_path, suffix, rate_hz, num_channels):
    codec, layout = CODECS[suffix], {1: "mono", 2: "stereo"}[num_channels]
    first, second = sweep(2, 44100), sweep(2, rate_hz, num_channels)
    file = concatenate(
        tmp_path / f"both.{suffix}",
        write_sound(tmp_path / f"a.{suffix}", first, codec, "mono"),
        write_sound(tmp_path / f"b.{suffix}", second, codec, layout),
    )
    result = read_sound(file)
    assert (result.rate_hz, result.num_channels) == (44100, num_channels)
    assert result.duration_s == pytest.approx(4, abs=0.06)
    voice, original = result.samples[-1], first.samples[0]
    for half in (voice[: 2 * 44100], voice[2 * 44100 - 3000 :]):
        shift = lag(half, original)
        assert correlation(half[max(0, shift) :][:80_000], original[max(0, -shift) :][:80_000]) > 0.99


JOINED = {  # rates and channels of what follows 44.1 kHz mono, or 48 kHz where the codec knows no other
    "flac": ("flac", [(96000, 1), (44100, 1)]), "oga": ("flac", [(96000, 1), (32000, 2)]),
    "opus": ("libopus", [(48000, 2), (48000, 1)]), "wav": ("pcm_s16le", [(96000, 1), (32000, 2)]),
}  # fmt: skip


def write_joined(folder, suffix):
    """Three sounds of 2 s in one file: at their own rates and channels."""
    codec, others = JOINED[suffix]
    parts = [
        write_sound(folder / f"{number}.{suffix}", sweep(2, rate, num), codec, LAYOUTS[num])
        for number, (rate, num) in enumerate([(48000 if codec == "libopus" else 44100, 1), *others])
    ]
    return parts, concatenate(folder / f"all.{suffix}", *parts)


@pytest.mark.parametrize("suffix", JOINED)
def test_joined_files_are_one_sound_whatever_their_headers_say(tmp_path, suffix):
    _, path = write_joined(tmp_path, suffix)
    result, facts = read_sound(path), probe_sound(path)
    rate_hz = result.rate_hz
    assert (facts.rate_hz, facts.num_channels) == (rate_hz, result.num_channels)
    assert result.duration_s == pytest.approx(6, abs=0.02) == facts.duration_s
    for start_s in (0, 2, 4):
        part = result.samples[-1, start_s * rate_hz :][: 2 * rate_hz]
        assert abs(lag(part, sweep(2, rate_hz).samples[0])) < 100
    beginning = read_sound(path, max_duration_s=3)
    assert beginning.duration_s == pytest.approx(3)
    assert torch.equal(beginning.samples[0], result.samples[0, : 3 * rate_hz])


GAPS = {
    "webm": ("libopus", (2.0, 3.5)), "mkv": ("aac", (1.0, 3.0)), "mka": ("flac", (2.0, 3.5)),
    "ogg": ("libopus", (2.0, 3.0)), "m4a": ("aac", (2.0, 3.5)), "mp4": ("libopus", (2.0, 3.5)),
    "mov": ("alac", (2.0, 3.5)), "ts": ("aac", (1.0, 3.0)), "flv": ("aac", (1.0, 3.0)),
}  # fmt: skip


def assert_silent_gap(result, sound, gap_s, length_s=6.0):
    """Silence where the gap is, and what follows it where it was, within a frame of the codec."""
    samples, rate_hz = result.samples[0], sound.rate_hz
    assert result.duration_s == pytest.approx(length_s, abs=0.06)
    middle = samples[round((gap_s[0] + 0.1) * rate_hz) : round((gap_s[1] - 0.1) * rate_hz)]
    assert middle.abs().max() < 1e-3
    start = round(4 * rate_hz)
    assert abs(lag(samples[start:], sound.samples[0, start:])) <= 1024


@pytest.mark.parametrize("suffix", GAPS)
def test_packets_that_are_absent_are_silence(tmp_path, suffix):
    (codec, gap_s), sound = GAPS[suffix], sweep(6, 48000)
    path = write_sound(tmp_path / f"gap.{suffix}", sound, codec, "mono", gap_s)
    assert_silent_gap(read_sound(path), sound, gap_s)


@pytest.mark.parametrize(("suffix", "codec"), [("mkv", "aac"), ("webm", "libopus"), ("m4a", "aac"), ("mov", "alac")])
def test_a_gap_in_front_is_silence(tmp_path, suffix, codec):
    sound = sweep(6, 48000)
    path = write_sound(tmp_path / f"late.{suffix}", sound, codec, "mono", (-1.0, 1.5))
    assert_silent_gap(read_sound(path), sound, (0.0, 1.5))


def test_a_gap_beside_a_picture_is_silence(tmp_path):
    sound = sweep(6, 48000)
    path = write_video(tmp_path / "gap.mp4", num_frames=150, fps=25, sound=sound, gap_s=(1.0, 3.0))
    assert_silent_gap(read_sound(path), sound, (1.0, 3.0))


def test_a_damaged_middle_of_ogg_is_silence(tmp_path, caplog):
    sound = sweep(6, 48000)
    path = write_sound(tmp_path / "whole.ogg", sound, "libopus", "mono")
    data = bytearray(path.read_bytes())
    start, end = 2 * len(data) // 6, 3 * len(data) // 6
    data[start:end] = random.Random(0).randbytes(end - start)
    path.write_bytes(data)
    result = read_sound(path)
    assert result.duration_s == pytest.approx(6, abs=0.06)
    tail = 4 * 48000
    assert abs(lag(result.samples[0, tail:], sound.samples[0, tail:])) <= 1024


def test_chained_ogg_is_one_sound(tmp_path):
    sound = sweep(2, 48000)
    path = write_sound(tmp_path / "a.ogg", sound, "libopus", "mono")
    result = read_sound(concatenate(tmp_path / "chain.ogg", path, path))
    assert result.duration_s == pytest.approx(4, abs=0.06)
    assert abs(lag(result.samples[0, 96000:], sound.samples[0])) <= 1024


@pytest.mark.parametrize("suffix", ["flac", "oga"])
def test_a_joined_file_that_is_cut_in_its_last_header_is_read_up_to_there(tmp_path, caplog, suffix):
    parts, path = write_joined(tmp_path, suffix)
    path.write_bytes(path.read_bytes()[: sum(part.stat().st_size for part in parts[:2]) + 30])
    assert read_sound(path).duration_s == pytest.approx(4, abs=0.02)
    assert "Part 3 of 3 is left out" in caplog.text


def test_tags_between_joined_files_are_no_sound(tmp_path):
    tag = b"ID3\4\0\0\0\0\0\x0a" + bytes(10)
    parts, path = write_joined(tmp_path, "flac")
    path.write_bytes(b"".join(tag + part.read_bytes() for part in parts))
    assert read_sound(path).duration_s == pytest.approx(6, abs=0.02)


def test_a_file_of_too_many_joined_ones_is_refused(tmp_path):
    (tmp_path / "bomb.flac").write_bytes(b"fLaC\0\0\0\x22" * 2000)
    with pytest.raises(AudioError, match="joined of more than 1000 files"):
        read_sound(tmp_path / "bomb.flac")


def test_damaged_packets_are_left_out_with_one_line(tmp_path, caplog):
    path = write_sound(tmp_path / "voice.m4a", sweep(6, 48000), "aac", "mono")
    data = path.read_bytes()
    start = data.index(b"mdat") + 8
    damaged = tmp_path / "damaged.m4a"
    for seed in range(40):
        bytes_, chance = bytearray(data), random.Random(seed)
        position = start + chance.randrange(len(data) // 5, len(data) // 2)
        bytes_[position : position + 4] = chance.randbytes(4)
        damaged.write_bytes(bytes_)
        caplog.clear()
        assert read_sound(damaged).duration_s == pytest.approx(6, abs=0.06)
        assert len(caplog.messages) <= 1 and all("damaged audio packet" in line for line in caplog.messages)


def decoding(frame, packets=(50, 51)):
    """Numbers of a file's frames, changed by `frame` where they come from some packets."""
    number = 0

    def resampled(self, decoded, resample=sound_module._Recording._append):
        nonlocal number
        for each in decoded:
            number += 1
            if number in packets:
                each = av.AudioFrame.from_ndarray(frame(each.to_ndarray()), "flt", each.layout.name)
            resample(self, [each])

    return resampled


@pytest.mark.parametrize("number", [1e4, 1e9, math.nan, math.inf])
def test_numbers_that_a_decoder_makes_of_damaged_packets_are_silence(tmp_path, monkeypatch, caplog, number):
    """Else a single packet would refuse the sound, or scale all of it down as one of integers."""
    sound = sweep(6, 48000)
    path = write_sound(tmp_path / "voice.m4a", sound, "aac", "mono")
    whole = read_sound(path).samples
    monkeypatch.setattr(sound_module._Recording, "_append", decoding(lambda samples: samples * 0 + np.float32(number)))
    result = read_sound(path).samples
    places = (result != whole).nonzero()[:, 1]
    assert result.shape == whole.shape and 0 < len(places) <= 2 * 1024
    assert result[:, places].abs().max() == 0 and "2 damaged audio packets" in caplog.text


def test_damage_is_told_where_only_a_part_is_used(tmp_path, caplog):
    path = write_sound(tmp_path / "voice.m4a", sweep(6, 48000), "aac", "mono")
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 8
    data[start + 2000 : start + 2400] = bytes(255 for _ in range(400))
    path.write_bytes(data)
    assert read_sound(path, max_duration_s=4).duration_s == pytest.approx(4)
    assert "damaged audio packet" in caplog.text


def test_a_sound_that_ends_before_its_header_says_is_told(tmp_path, caplog):
    path = write_sound(tmp_path / "cut.mka", sweep(20, 48000), "flac", "mono")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert 5 < read_sound(path).duration_s < 15
    assert "its header says 20.0" in caplog.text
    caplog.clear()
    read_sound(path, max_duration_s=3)
    assert not caplog.messages


def test_a_file_of_damaged_packets_alone_is_refused(tmp_path):
    path = write_sound(tmp_path / "voice.m4a", sweep(1, 48000), "aac", "mono")
    data = bytearray(path.read_bytes())
    start, end = data.index(b"mdat") + 4, data.index(b"moov") - 4
    data[start:end] = bytes(255 for _ in range(end - start))
    path.write_bytes(data)
    with pytest.raises(AudioError, match="without a single sample"):
        read_sound(path)


@pytest.mark.parametrize(("default", "is_voice"), [(1, True), (0, False), (None, False)])
def test_the_default_track_is_read_and_the_first_where_none_is_marked(tmp_path, default, is_voice):
    voice = sweep(1, 48000)
    silence = Sound(torch.zeros_like(voice.samples), 48000)
    path = write_tracks(tmp_path / "two.mkv", [silence, voice], "aac", "mono", default)
    assert (peak_of(read_sound(path).samples) > 0.1) is is_voice


@pytest.mark.parametrize("name", ["take:1.wav", "http:x.wav", "12:30:00.wav", "concat:a|b.wav", "pipe:0.wav"])
def test_a_colon_in_a_relative_name_is_no_protocol(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    soundfile.write(tmp_path / name, sweep(0.1, 16000).samples.T.numpy(), 16000, format="WAV")
    assert read_sound(name).duration_s == pytest.approx(0.1)


PLAYLISTS = {
    "list.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{path}\n#EXT-X-ENDLIST\n",
    "list.wav": "ffconcat version 1.0\nfile {path}\n",
    "list.mp3": "ffconcat version 1.0\nfile {path}\n",
    "list.mpd": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period><BaseURL>{path}</BaseURL>'
    "</Period></MPD>",
    "list.sdp": "v=0\nc=IN IP4 127.0.0.1\nm=audio 5004 RTP/AVP 0\n",
}


@pytest.mark.parametrize(("name", "text"), PLAYLISTS.items())
def test_a_playlist_opens_no_other_file(tmp_path, name, text):
    secret = write_sound(tmp_path / "secret.wav", sweep(0.1, 16000), "pcm_s16le", "mono")
    (tmp_path / name).write_text(text.format(path=secret.name))
    with pytest.raises(AudioError, match="cannot be read as audio"):
        read_sound(tmp_path / name)


@pytest.mark.parametrize("scale", [2**15, 1])
def test_a_file_of_floats_in_the_range_of_integers_is_scaled(tmp_path, scale):
    sound = sweep(0.2, 16000)
    path = write_sound(tmp_path / "f.wav", Sound(sound.samples * scale, 16000), "pcm_f32le", "mono")
    assert torch.allclose(read_sound(path).samples, sound.samples, atol=1e-6)


def test_a_file_is_probed_and_read_as_far_as_it_is_used(tmp_path):
    sound = sweep(3, 44100, 2)
    path = write_sound(tmp_path / "long.wav", sound, "pcm_f32le", "stereo")
    facts = probe_sound(path)
    assert (facts.rate_hz, facts.num_channels, facts.duration_s) == (44100, 2, pytest.approx(3))
    assert facts.num_bytes() == 3 * 44100 * 2 * 4 == 3 * facts.num_bytes(max_duration_s=1)
    beginning = read_sound(path, max_duration_s=0.5)
    assert torch.equal(beginning.samples, sound.samples[:, :22050])


def test_more_sound_than_memory_holds_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    path = write_sound(tmp_path / "long.flac", hum(2, 48000, 1), "flac", "mono")
    monkeypatch.setattr(sound_module, "MAX_BYTES", 100_000)
    with pytest.raises(AudioError, match=r"long\.flac takes more than .* GB of memory"):
        read_sound(path)
    assert read_sound(path, max_duration_s=0.1).duration_s == pytest.approx(0.1)


READING = """
from multitalk_pack.benchmarks.measure import PeakMemory
from multitalk_pack.pipeline.audio.dialogue import Arrangement, Speech, arrange, mix_soundtrack
from multitalk_pack.pipeline.media.sound import read_sound
import math, torch
read_sound(sys.argv[1], 0.5)
arrange([Speech(read_sound(sys.argv[1], 0.5))], Arrangement.PARALLEL)  # libraries are loaded

def peaks(max_s):
    peak = PeakMemory(torch.device("cpu"))
    sound = read_sound(sys.argv[1], max_s)
    sizes = [peak.megabytes()]
    speeches = [Speech(sound)]
    tracks = arrange(speeches, Arrangement.PARALLEL)
    sizes.append(peak.megabytes())
    mix_soundtrack(speeches, Arrangement.PARALLEL, round(sound.duration_s * 25))
    return *sizes, peak.megabytes(), sound.samples.numel() * 4 / 2**20

print(json.dumps([peaks(30.0), peaks(math.inf)]))
"""


@linux_only
def test_a_sound_or_the_part_of_it_that_is_used_is_held_once(tmp_path):
    noise = Sound(0.1 * torch.randn(2, 10 * 44100), 44100)
    part = write_sound(tmp_path / "part.mp3", noise, "mp3", "stereo")
    path = concatenate(tmp_path / "long.mp3", *[part] * 20)
    for *steps, size in run_script(READING, path):
        assert max(steps) < 1.5 * size + 30  # and what decoders and filters take
