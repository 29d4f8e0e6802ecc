"""Video files: what is written comes back, in step with its sound."""

import math
import os
import resource
import subprocess
import sys
import threading
from fractions import Fraction

import av
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from multitalk_pack.pipeline.audio.dialogue import Arrangement, Speech, mix_soundtrack
from multitalk_pack.pipeline.audio.embeds import num_frames_of, num_model_frames
from multitalk_pack.pipeline.audio.waveform import Sound
from multitalk_pack.pipeline.errors import AudioError, ImageError, MultiTalkError
from multitalk_pack.pipeline.media.sound import read_sound
from multitalk_pack.pipeline.media.video import (
    AAC_LAYOUTS,
    BackgroundWriter,
    VideoWriter,
    frames_at_25,
    indices_at_25,
    read_video,
    resample_frame_times,
)
from support.media import correlation, damage_picture, hum, sweep, write_video
from support.pack import PACK

DURATIONS_S = [0.2, 1, 3.24, 3.25, 10, pytest.param(59.97, marks=pytest.mark.long)]
ONE_FRAME = torch.full((1, 16, 32, 3), 128, dtype=torch.uint8)


def write(path, frames, **options):
    with VideoWriter(path, **options) as video:
        video.add(frames)
    return path


def blocks(num_frames, height, width):
    """Colour in blocks of 16 pixels, which chroma subsampling keeps; uint8 `f h w c`."""
    small = torch.randint(0, 256, (num_frames, -(-height // 16), -(-width // 16), 3), dtype=torch.uint8)
    return small.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, :height, :width]


@pytest.mark.parametrize("fps", [16, 24, 25, 30, Fraction(30000, 1001)])
@pytest.mark.parametrize("duration_s", DURATIONS_S)
def test_sound_and_picture_end_together(tmp_path, duration_s, fps):
    num_frames = num_frames_of(duration_s, fps)
    sound = mix_soundtrack([Speech(hum(duration_s, 16000, 1))], Arrangement.PARALLEL, num_frames, fps)
    with VideoWriter(tmp_path / "talk.mp4", fps, sound) as video:
        for _ in range(num_frames):
            video.add(ONE_FRAME)
    with av.open(str(tmp_path / "talk.mp4")) as container:
        (picture,), (voice,) = container.streams.video, container.streams.audio
        assert (picture.frames, picture.average_rate) == (num_frames, fps)
        picture_end_s = picture.start_time * picture.time_base + picture.duration * picture.time_base
        voice_end_s = voice.start_time * voice.time_base + voice.duration * voice.time_base
    assert abs(picture_end_s - num_frames / fps) < Fraction(1, 1000)
    assert abs(voice_end_s - picture_end_s) < 1 / fps


@pytest.mark.parametrize("rate_hz", [8000, 44100, 96000])
@pytest.mark.parametrize("num_channels", AAC_LAYOUTS)
def test_the_soundtrack_keeps_rate_channels_and_time(tmp_path, rate_hz, num_channels):
    sound = hum(1, rate_hz, num_channels)
    got = read_sound(write(tmp_path / "talk.mp4", ONE_FRAME.expand(25, -1, -1, -1), sound=sound))
    assert (got.rate_hz, got.num_channels) == (rate_hz, num_channels)
    has_lfe = num_channels in (6, 8)  # its fourth channel; at 8 kHz AAC leaves little of it
    voices = [channel for channel in range(num_channels) if not (has_lfe and channel == 3)]
    assert all(lag(got.samples[channel], sound.samples[channel]) == 0 for channel in voices)


def lag(late, early, reach=12):
    """Samples, at most `reach` each way, by which one sound follows the other."""
    length = len(early) * 9 // 10
    early = early[reach:length]
    return max(range(-reach, reach + 1), key=lambda shift: torch.dot(late[reach + shift : length + shift], early))


@pytest.mark.parametrize(("rate_hz", "kept_hz"), [(192000, 96000), (50000, 64000), (6000, 7350)])
def test_rates_that_aac_does_not_have_take_the_nearest(tmp_path, rate_hz, kept_hz):
    got = read_sound(write(tmp_path / "talk.mp4", ONE_FRAME.expand(5, -1, -1, -1), sound=hum(0.2, rate_hz, 1)))
    assert got.rate_hz == kept_hz
    assert got.duration_s == pytest.approx(0.2, abs=0.16)


def test_more_channels_than_aac_has_become_mono(tmp_path):
    assert read_sound(write(tmp_path / "talk.mp4", ONE_FRAME, sound=hum(0.2, 16000, 12))).num_channels == 1


@pytest.mark.parametrize(("height", "width"), [(16, 32), (17, 33), (2, 2), (1, 1), (48, 31)])
def test_frames_come_back(tmp_path, height, width):
    frames = blocks(6, height, width)
    video = read_video(write(tmp_path / "talk.mp4", frames))
    assert (video.fps, video.sound) == (25, None)
    assert video.frames.shape == (6, height + height % 2, width + width % 2, 3)
    assert (video.frames[:, :height, :width].float() - frames.float()).abs().mean() < 6


def test_the_engines_frames_are_rounded_to_the_nearest_byte(tmp_path):
    frames = blocks(3, 32, 32)
    as_bytes = read_video(write(tmp_path / "bytes.mp4", frames)).frames
    floats = frames.permute(3, 0, 1, 2) / 127.5 - 1
    for name, variant in {"exact": floats, "above": floats + 0.003, "below": floats - 0.003}.items():
        assert torch.equal(read_video(write(tmp_path / f"{name}.mp4", variant)).frames, as_bytes)


def test_colours_are_tagged_as_they_are_coded(tmp_path):
    with av.open(str(write(tmp_path / "talk.mp4", blocks(1, 16, 16)))) as container:
        frame = next(container.decode(video=0))
        assert (frame.format.name, frame.colorspace, frame.color_range) == ("yuv420p", 1, 1)


def test_the_index_stands_in_front_and_sound_beside_its_picture(tmp_path):
    frames = torch.randint(0, 256, (100, 32, 32, 3), dtype=torch.uint8)
    data = write(tmp_path / "talk.mp4", frames, sound=hum(4, 16000, 1)).read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    with av.open(str(tmp_path / "talk.mp4")) as container:
        places = {"video": [], "audio": []}
        for packet in container.demux():
            if packet.size:
                places[packet.stream.type].append((packet.pos, float(packet.dts * packet.time_base)))
    middle = places["video"][50]
    nearest = min(places["audio"], key=lambda place: abs(place[0] - middle[0]))
    assert abs(nearest[1] - middle[1]) < 1


def test_windows_may_come_in_any_portions(tmp_path):
    frames = torch.randint(0, 256, (10, 16, 16, 3), dtype=torch.uint8)
    with VideoWriter(tmp_path / "portions.mp4") as video:
        for portion in frames.split([1, 4, 5]):
            video.add(portion)
    assert video.num_frames == 10
    assert (tmp_path / "portions.mp4").read_bytes() == write(tmp_path / "whole.mp4", frames).read_bytes()


ENCODED = """
import sys; sys.path.insert(0, {tests!r}); import conftest
import torch
from multitalk_pack.pipeline.media.video import VideoWriter
for seed in range(6):
    noise = torch.randint(0, 256, (10, 18, 34, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    with VideoWriter(f"{{sys.argv[1]}}/{{seed}}.mp4") as video:
        video.add(noise)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc fills fresh memory on request")
def test_the_file_depends_on_nothing_but_its_frames(tmp_path):
    files = []
    for filling in ("0", "85", "255"):  # of memory that nobody has written to yet
        folder = tmp_path / filling
        code = ENCODED.format(tests=str(PACK / "tests"))
        environment = {**os.environ, "MALLOC_PERTURB_": filling}
        subprocess.run([sys.executable, "-c", code, str(folder)], env=environment, check=True)
        files.append([path.read_bytes() for path in sorted(folder.glob("*.mp4"))])
    assert files[0] == files[1] == files[2]


def test_an_exception_leaves_neither_a_file_nor_its_predecessor_touched(tmp_path):
    path = write(tmp_path / "talk.mp4", ONE_FRAME)
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt), VideoWriter(path, sound=hum(1, 16000, 1)) as video:
        video.add(ONE_FRAME)
        raise KeyboardInterrupt
    with pytest.raises(ImageError, match="no frame"), VideoWriter(path):
        pass
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_told_and_leaves_no_file(tmp_path):
    noise = torch.randint(256, (30, 64, 96, 3), dtype=torch.uint8)
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, unlimited[1]))
        with pytest.raises(MultiTalkError, match=r"talk\.mp4 cannot be written \(File too large\)\. Make room"):
            write(tmp_path / "talk.mp4", noise)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert list(tmp_path.iterdir()) == []


def test_folders_are_made(tmp_path):
    assert write(tmp_path / "new" / "folder" / "talk.mp4", ONE_FRAME).exists()


def test_frames_encoded_in_the_background_make_the_same_file(tmp_path):
    portions = [blocks(number, 32, 48) for number in (3, 1, 4)]
    write(tmp_path / "at_once.mp4", torch.cat(portions))
    with torch.inference_mode(), VideoWriter(tmp_path / "later.mp4") as file, BackgroundWriter(file) as writer:
        for portion in portions:
            writer.add(portion)
    assert (tmp_path / "later.mp4").read_bytes() == (tmp_path / "at_once.mp4").read_bytes()


@pytest.mark.parametrize("num_good", [0, 2])
@pytest.mark.parametrize("num_after", [0, 1])
def test_an_error_in_the_background_is_raised_and_leaves_no_file(tmp_path, num_good, num_after):
    with (
        pytest.raises(ImageError, match="Frames must be RGB"),
        VideoWriter(tmp_path / "talk.mp4") as file,
        BackgroundWriter(file) as writer,
    ):
        for frames in [ONE_FRAME] * num_good + [ONE_FRAME[..., :1]] + [ONE_FRAME] * num_after:
            writer.add(frames)
    assert not list(tmp_path.iterdir())


def test_frames_are_encoded_while_their_successors_are_made(tmp_path):
    is_encoding, goes_on = threading.Event(), threading.Event()

    class SlowWriter(VideoWriter):
        def add(self, frames):
            is_encoding.set()
            assert goes_on.wait(60)
            super().add(frames)

    with SlowWriter(tmp_path / "talk.mp4") as file, BackgroundWriter(file) as writer:
        writer.add(ONE_FRAME)
        assert is_encoding.wait(60)  # and here the next window would be sampled
        goes_on.set()
    assert file.num_frames == 1


@pytest.mark.parametrize("frames", [torch.zeros(1, 3, 8, 8), torch.zeros(3, 8, 8), ONE_FRAME[..., :1], torch.ones(0)])
def test_misshapen_frames_are_refused(tmp_path, frames):
    with pytest.raises(ImageError, match="Frames must be RGB"):
        write(tmp_path / "talk.mp4", frames)


def test_frames_keep_one_size(tmp_path):
    with pytest.raises(ImageError, match="Keep one size"), VideoWriter(tmp_path / "talk.mp4") as video:
        video.add(ONE_FRAME)
        video.add(ONE_FRAME[:, :8])


def test_bad_sound_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(AudioError, match="NaN"):
        VideoWriter(tmp_path / "talk.mp4", sound=Sound(torch.tensor([[float("nan")]]), 16000))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "content"), [("missing.mp4", None), ("empty.mp4", b""), ("text.mp4", b"text" * 99)])
def test_what_is_no_video_is_refused(tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageError, match=f"There is no file|{name} cannot be read"):
        read_video(tmp_path / name)


def test_a_dubbing_source_comes_with_its_sound(tmp_path):
    frames, sound = blocks(10, 16, 16), hum(0.5, 48000, 2)
    video = read_video(write(tmp_path / "talk.mp4", frames, fps=20, sound=sound))
    assert (len(video.frames), video.fps) == (10, 20)
    assert (video.sound.rate_hz, video.sound.num_channels) == (48000, 2)
    assert video.times_s.tolist() == pytest.approx([frame / 20 for frame in range(10)])


@given(st.lists(st.floats(0.004, 0.4), min_size=2, max_size=60))
def test_of_a_source_of_any_rate_the_frame_of_its_time_is_shown(durations_s):
    times_s = torch.tensor([0.0, *durations_s], dtype=torch.float64).cumsum(0)
    indices = indices_at_25(times_s).tolist()
    ends_s = [*times_s[1:].tolist(), math.inf]
    middles_s = [(frame + 0.5) / 25 for frame in range(len(indices))]
    assert all(times_s[k] <= middle < ends_s[k] for k, middle in zip(indices, middles_s, strict=True))
    assert len(indices) >= 25 * times_s[-1] - 0.5  # all of it


@pytest.mark.parametrize("fps", [12, 24, 25, 30, 50, 60])
def test_a_video_to_dub_is_taken_by_time(tmp_path, fps):
    video = read_video(write(tmp_path / "source.mp4", ONE_FRAME.expand(4 * fps, -1, -1, -1), fps=fps))
    frames = frames_at_25(video.frames, video.times_s)
    assert len(frames) == 100 and (fps != 25 or frames is video.frames)


@given(st.integers(1, 2000), st.sampled_from([8, 12, 15, 16, 24, 25, 30, 50, 60, 23.976, Fraction(30000, 1001)]))
def test_another_rate_shows_the_model_frame_of_its_time(num_frames, fps):
    exact = Fraction(fps).limit_denominator(1001)
    num_model = num_model_frames(num_frames, fps)
    indices = resample_frame_times(num_model, fps, num_frames)
    assert len(indices) == num_frames
    middles = [(frame + Fraction(1, 2)) / exact * 25 for frame in range(num_frames)]
    assert all(frame <= middle < frame + 1 for frame, middle in zip(indices.tolist(), middles, strict=True))


def test_the_models_own_rate_shows_every_frame_once():
    assert torch.equal(resample_frame_times(97, 25), torch.arange(97))
    assert resample_frame_times(25, 50).tolist() == [frame // 2 for frame in range(50)]
    assert len(resample_frame_times(1, 16)) == 1


def test_memory_does_not_grow_with_the_video(tmp_path):
    frames = torch.randint(0, 256, (4, 256, 256, 3), dtype=torch.uint8)
    with VideoWriter(tmp_path / "talk.mp4", sound=hum(1, 16000, 1)) as video:
        for _ in range(30):
            video.add(frames)  # the encoder's look-ahead is filled
        before = psutil.Process().memory_info().rss
        for _ in range(60):
            video.add(frames)
        growth = psutil.Process().memory_info().rss - before
    assert growth < 60 * frames.numel() / 4


def test_a_growing_file_can_be_watched_and_becomes_the_ordinary_one(tmp_path):
    """Frames are there a few frames later; in the end its pictures and sounds are copied as they are."""
    frames, sound, part = torch.rand(3, 60, 32, 48) * 2 - 1, sweep(2.4, 16000), tmp_path / "grown.mp4"
    with VideoWriter(tmp_path / "grown_whole.mp4", 25, sound, part) as writer:
        for start in range(0, 60, 20):
            writer.add(frames[:, start : start + 20])
            assert start + 10 <= len(read_video(part).frames) <= start + 20
    with VideoWriter(tmp_path / "whole.mp4", 25, sound) as writer:
        writer.add(frames)
    grown, whole = (read_video(tmp_path / name) for name in ("grown_whole.mp4", "whole.mp4"))
    assert torch.equal(grown.frames, whole.frames) and torch.equal(grown.times_s, whole.times_s)
    assert torch.equal(grown.sound.samples, whole.sound.samples)
    assert not part.exists()


def test_sound_beyond_full_scale_is_turned_down_as_a_whole(tmp_path, caplog):
    """Recorders of floats write it; players would clip it."""
    loud = Sound(3 * sweep(2, 16000).samples, 16000)
    write(tmp_path / "talk.mp4", ONE_FRAME.expand(50, -1, -1, -1), sound=loud)
    sound = read_sound(tmp_path / "talk.mp4")
    assert 0.9 < sound.samples.abs().max() < 1.1 and correlation(sound.samples, loud.samples) > 0.99
    assert "full scale is 1: it is turned down" in caplog.text


def test_a_damaged_packet_of_a_video_leaves_the_other_frames_in_their_time(tmp_path, caplog):
    path = write_video(tmp_path / "dub.mp4", 50, 25)
    whole = read_video(path)
    damage_picture(path, 20)
    damaged = read_video(path)
    assert 45 <= len(damaged.frames) < 50 and "damaged packets of its picture were left out" in caplog.text
    at = [whole.times_s.tolist().index(time_s) for time_s in damaged.times_s.tolist()]
    assert torch.equal(damaged.frames[:10], whole.frames[at][:10])
    assert len(frames_at_25(damaged.frames, damaged.times_s)) == 50


@pytest.mark.parametrize("ending", ["mp4", "mov", "mkv"])
def test_what_has_grown_stays_when_the_run_fails_and_nothing_stays_of_nothing(tmp_path, ending, caplog):
    path, part = tmp_path / f"whole.{ending}", tmp_path / f"part.{ending}"
    for num_frames in (0, 40):
        with pytest.raises(KeyboardInterrupt), VideoWriter(path, 25, sweep(2, 16000), part) as writer:
            writer.add(torch.zeros(3, num_frames, 32, 32))
            raise KeyboardInterrupt
        assert part.exists() == bool(num_frames) and not path.exists()
        assert (f"as far as it was made is in {part}" in caplog.text) == bool(num_frames)
    assert len(read_video(part).frames) >= 30
