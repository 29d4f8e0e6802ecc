"""The bundled model on a face and a sentence that were not in its training."""

import librosa
import numpy as np
import pytest
from multitalk_pack.pipeline.__main__ import ASSETS
from multitalk_pack.pipeline.audio.waveform import SAMPLE_RATE_HZ
from multitalk_pack.pipeline.media.video import read_video
from multitalk_pack.pipeline.multitalk_pipeline import MultiTalkPipeline
from PIL import Image

from demo.lip_sync import implied_mouth, measure, mouth_openings

NUM_FRAMES = 57


def video(folder, **request):
    """Frames `f h w 3` uint8 in five steps."""
    talk = MultiTalkPipeline.bundled(device="cpu")
    path = talk.render(folder / "talk.mp4", **request, num_frames=NUM_FRAMES, steps=5)
    return read_video(path).frames.numpy()


@pytest.fixture(scope="module")
def talking(tmp_path_factory):
    """One person."""
    return video(
        tmp_path_factory.mktemp("one"),
        image=ASSETS / "drawn_portrait.png",
        audio=ASSETS / "drawn_speech.wav",
        prompt="a smiling person talks",
    )


@pytest.fixture(scope="module")
def two_people(tmp_path_factory):
    """Two people, of whom the left one speaks; the prompt names no expression."""
    return video(
        tmp_path_factory.mktemp("two"),
        image=ASSETS / "drawn_two.png",
        audio=(ASSETS / "drawn_speech.wav", None),
        prompt="A person is talking to the camera.",
    )


def implied(name):
    """Opening of the mouth, `f`, that a sound of the demo implies."""
    samples, _ = librosa.load(ASSETS / name, sr=SAMPLE_RATE_HZ)
    return implied_mouth(samples).opening[:NUM_FRAMES]


def test_the_lips_follow_the_own_sound_and_no_other(talking):
    opening = mouth_openings(talking)[0]
    own = measure(opening, implied("drawn_speech.wav"))
    assert own.correlation >= 0.8 and abs(own.lag) <= 1
    assert abs(measure(opening, implied("drawn_answer.wav")).without_lag) <= 0.3


def test_the_face_stays_itself(talking):
    portrait = np.asarray(Image.open(ASSETS / "drawn_portrait.png").convert("RGB").resize((128, 128)), float)
    above = np.s_[:32]  # hair, forehead and background: no eyes, no mouth
    errors = np.square(talking[:, above].astype(float) - portrait[above]).mean(axis=(1, 2, 3))
    assert 10 * np.log10(255**2 / errors.max()) >= 24


def test_of_two_people_only_the_one_with_a_voice_speaks(two_people):
    speaking, silent = mouth_openings(two_people, 2)
    assert measure(speaking, implied("drawn_speech.wav")).correlation >= 0.8
    assert silent[12:].std() < 0.2 * speaking[12:].std()
