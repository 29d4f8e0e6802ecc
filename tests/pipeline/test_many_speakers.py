"""Three and four speakers, each with a place of its own, through the sampler."""

import dataclasses
import itertools

import pytest
import torch
from multitalk_pack.pipeline.conditioning.speakers import Place, speaker_masks
from multitalk_pack.pipeline.media.pixels import to_uint8
from support import run

SIZE = 32, 128  # eight tokens wide: two for each of four


def frames_of(model, audio, places):
    masks = speaker_masks(places, SIZE, SIZE)
    source = to_uint8(run.random((1, *SIZE, 3), 6))
    conditioning = dataclasses.replace(run.conditioning(model), source=source, speaker_masks=masks)
    return torch.cat(list(run.generate(model, audio, conditioning, run.config(steps=1))), 1)


@pytest.mark.parametrize("num_speakers", [3, 4])
def test_each_voice_and_each_place_matters(num_speakers, caplog):
    model, places = run.model(), side_by_side(num_speakers)
    audio = run.audio(model, 13, num_speakers)
    frames = frames_of(model, audio, places)
    assert frames.shape == (3, 13, *SIZE)
    assert f"{num_speakers} speakers: MultiTalk was trained with 2 at most" in caplog.text
    for speaker in range(num_speakers):
        features = audio.features.clone()
        features[speaker] += 1
        other = frames_of(model, dataclasses.replace(audio, features=features), places)
        assert not torch.allclose(other, frames, atol=1e-3)
    for first, second in itertools.combinations(range(num_speakers), 2):
        swapped = list(places)
        swapped[first], swapped[second] = swapped[second], swapped[first]
        assert not torch.allclose(frames_of(model, audio, swapped), frames, atol=1e-3)


def side_by_side(num_speakers):
    """A box for each, in percent, with background between them."""
    share = 100 / num_speakers
    return [Place(box=(share * n, 0, share * (n + 1), 50), percent=True) for n in range(num_speakers)]
