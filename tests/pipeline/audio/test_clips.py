"""A dialogue of clips has each word at its time and with its speaker; recordings of several people are cut alike."""

import pytest
import torch
from multitalk_pack.pipeline.audio.clips import Clip, Dialogue, split_by_transcript, split_channels
from multitalk_pack.pipeline.audio.dialogue import Arrangement, arrange, mix_soundtrack
from multitalk_pack.pipeline.audio.timeline import MARGIN, ROW, SCALE, WIDTH, draw_timeline
from multitalk_pack.pipeline.audio.transcript import read_transcript
from multitalk_pack.pipeline.audio.waveform import Sound
from multitalk_pack.pipeline.errors import AudioError

RATE_HZ = 16000
RED, BLUE = (255, 0, 0), (0, 0, 255)
SRT = """1
00:00:00,500 --> 00:00:01,000
Ann: Hello there.

2
00:00:01,250 --> 00:00:02,000
[Bob] Hello.

3
00:00:02,000 --> 00:00:02,500
And welcome.
"""
RTTM = """SPEAKER talk 1 0.500 0.500 <NA> <NA> ann <NA> <NA>
SPEAKER talk 1 1.250 0.750 <NA> <NA> bob <NA> <NA>
SPEAKER talk 1 2.000 0.500 <NA> <NA> bob <NA> <NA>
"""


def tone(duration_s, level=0.5, rate_hz=RATE_HZ, num_channels=1):
    """A loud sound: one level with alternating sign."""
    samples = level * (1 - 2 * (torch.arange(round(duration_s * rate_hz)) % 2)).float()
    return Sound(samples.expand(num_channels, -1), rate_hz)


def tracks(dialogue):
    """True where each speaker is heard, `p n` at 16 kHz, by the levels that were put in."""
    return torch.stack(arrange(dialogue.speeches(), Arrangement.PARALLEL, normalize=False)).abs() > 0.1


def extent_s(track):
    """First and last moment, and the seconds in which a track sounds."""
    moments = track.nonzero()[:, 0] / RATE_HZ
    return round(moments[0].item(), 3), round(moments[-1].item(), 3), round(track.float().sum().item() / RATE_HZ, 3)


def test_clips_follow_each_other_with_their_pauses_and_at_their_starts():
    dialogue = Dialogue()
    for clip in (
        Clip(tone(1.0), 1, pause_s=0.3),  # the first one waits for nobody
        Clip(tone(0.5), 2, pause_s=0.25),
        Clip(tone(0.5), 1, pause_s=-0.25),  # interrupts
        Clip(tone(0.5), 2, start_s=3.0),
    ):
        dialogue = dialogue.with_clip(clip)
    assert [interval.start_s for interval in dialogue.turns()] == [0.0, 1.25, 1.5, 3.0]
    first, second = tracks(dialogue)
    assert extent_s(first) == (0.0, pytest.approx(2.0, abs=1e-3), 1.5)
    assert extent_s(second) == (1.25, pytest.approx(3.5, abs=1e-3), 1.0)
    assert (first & second).sum() == 0.25 * RATE_HZ  # while they interrupt each other
    sound = mix_soundtrack(dialogue.speeches(), Arrangement.PARALLEL, num_frames=200)
    assert sound.duration_s == 3.5


def test_a_speaker_without_a_clip_keeps_silent():
    dialogue = Dialogue((Clip(tone(1.0), 2),))
    first, second = tracks(dialogue)
    assert dialogue.num_speakers == 2 and not first.any() and extent_s(second)[2] == 1.0


def test_an_only_clip_stays_as_it_came():
    sound = tone(1.0, rate_hz=44100, num_channels=2)
    (speech,) = Dialogue((Clip(sound, 1),)).speeches()
    assert speech.sound is sound and speech.start_s == 0.0


def test_clips_of_other_rates_and_channels_are_joined_at_the_best_of_them():
    dialogue = Dialogue((Clip(tone(1.0), 1), Clip(tone(1.0, rate_hz=48000, num_channels=2), 1, pause_s=1.0)))
    (speech,) = dialogue.speeches()
    assert (speech.sound.rate_hz, speech.sound.num_channels, speech.sound.duration_s) == (48000, 2, 3.0)


@pytest.mark.parametrize(
    ("clips", "message"),
    [
        ((), "The dialogue is empty"),
        ((Clip(tone(1.0), 1), Clip(tone(1.0), 2, pause_s=-2.0)), "Clip 2 would start at -1.00 s"),
        ((Clip(tone(1.0), 1), Clip(tone(1.0), 1, start_s=0.5)), "Speaker 1 would say two things at 0.50 s"),
    ],
)
def test_what_cannot_be_said_is_refused(clips, message):
    with pytest.raises(AudioError, match=message):
        Dialogue(clips).speeches()


def test_a_speaker_on_each_channel_is_two_voices_and_the_recording_sounds_as_it_came():
    left, right = tone(1.0).samples[0], tone(1.0, level=0.25).samples[0]
    recording = Sound(torch.stack((left, right)), RATE_HZ)
    dialogue = split_channels(recording)
    first, second = (speech.sound.samples for speech in dialogue.speeches())
    assert torch.equal(first[0], left) and torch.equal(second[0], right) and dialogue.soundtrack is recording
    with pytest.raises(AudioError, match="one channel"):
        split_channels(tone(1.0))


@pytest.mark.parametrize("text", [SRT, RTTM, SRT.replace("\n", "\r\n"), f"\ufeff{SRT}"])
def test_a_transcript_gives_every_moment_to_who_speaks(text):
    turns = read_transcript(text)
    assert [name.lower() for name, _ in turns] == ["ann", "bob", "bob"]
    first, second = tracks(split_by_transcript(tone(3.0), turns))
    assert extent_s(first) == (0.5, pytest.approx(1.0, abs=1e-3), 0.5)
    assert extent_s(second) == (1.25, pytest.approx(2.5, abs=1e-3), 1.25)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no turns"),
        ("Hello, Bob.", "no turns"),
        ("1\n00:00:00,500 --> 00:00:01,000\nHello.\n", "Line 3 of the transcript must begin with who speaks"),
        ("1\n00:00:02,000 --> 00:00:01,000\nAnn: Hello.\n", "Line 2 of the transcript ends at 1 s"),
        ("SPEAKER talk 1 zero 0.5 <NA> <NA> ann", "Line 1 of the transcript is no turn"),
    ],
)
def test_a_transcript_that_says_not_who_speaks_when_is_refused(text, message):
    with pytest.raises(AudioError, match=message):
        read_transcript(text)


def test_the_transcript_of_another_recording_is_refused():
    with pytest.raises(AudioError, match=r"bob speaks at 1.25 s, and the recording lasts 1.00 s"):
        split_by_transcript(tone(1.0), read_transcript(RTTM))


def test_the_timeline_shows_each_clip_in_its_speakers_row_at_its_time():
    dialogue = Dialogue((Clip(tone(1.0), 1), Clip(tone(1.0), 2, pause_s=2.0)))
    picture = draw_timeline(dialogue, (RED, BLUE))
    assert picture.shape == (2 * ROW + SCALE, WIDTH, 3)
    edges = []
    for row, color in enumerate((RED, BLUE)):
        columns = (picture[row * ROW : (row + 1) * ROW, MARGIN:] == torch.tensor(color)).all(-1).any(0)
        edges.append([column / (WIDTH - MARGIN - 10) * 4 for column in columns.nonzero()[[0, -1], 0].tolist()])
    assert edges[0] == pytest.approx([0, 1], abs=0.01) and edges[1] == pytest.approx([3, 4], abs=0.01)
