"""Loaders of pictures and voices: the bundled examples and the user's own files, each where it belongs."""

import pytest
import torch
from support import pack
from support.workflow_files import PICTURE, RATE_HZ, VOICE_S, VOICES, write_inputs

EXAMPLES = {
    "MultiTalkLoadImage": ["drawn_portrait.png", "drawn_two.png", "portrait.jpg"],
    "MultiTalkLoadAudio": ["drawn_answer.wav", "drawn_speech.wav", "speech.wav"],
}
OWN = {"MultiTalkLoadImage": [PICTURE], "MultiTalkLoadAudio": sorted(VOICES)}


@pytest.fixture
def work(tmp_path):
    (tmp_path / "input").mkdir()
    write_inputs(tmp_path / "input")
    return tmp_path


@pytest.fixture
def nodes(work):
    return pack.node_classes(pack.load(work / "models", work))


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("kind", EXAMPLES)
def test_examples_stand_before_the_users_files_and_are_not_put_among_them(kind, nodes, work):
    before = files(work / "input")
    (socket,) = nodes[kind].GET_SCHEMA().inputs
    assert socket.choices == [*(f"multitalk_{name} [temp]" for name in EXAMPLES[kind]), *OWN[kind]]
    assert all(nodes[kind].validate_inputs(name) is True for name in socket.choices)
    assert files(work / "input") == before


def test_an_example_and_a_file_of_ones_own_are_loaded(nodes):
    picture, mask = nodes["MultiTalkLoadImage"].execute("multitalk_drawn_two.png [temp]").args
    assert picture.shape == (1, 512, 768, 3) and isinstance(mask, torch.Tensor)
    assert picture.min() >= 0 and picture.max() <= 1
    (audio,) = nodes["MultiTalkLoadAudio"].execute(next(iter(VOICES))).args
    assert (audio["waveform"].shape, audio["sample_rate"]) == ((1, 1, round(VOICE_S * RATE_HZ)), RATE_HZ)


@pytest.mark.parametrize("name", ["gone.png", "../models/vae.safetensors", "gone.png [temp]"])
@pytest.mark.parametrize("kind", EXAMPLES)
def test_a_file_that_is_not_there_is_refused_before_anything_runs(kind, name, nodes):
    assert nodes[kind].validate_inputs(name) == (
        f"{name} is not in ComfyUI's input folder. Choose another file, or upload it."
    )


@pytest.mark.parametrize("kind", EXAMPLES)
def test_a_file_that_was_replaced_is_loaded_anew(kind, nodes, work):
    name = OWN[kind][0]
    before = nodes[kind].fingerprint_inputs(name)
    assert nodes[kind].fingerprint_inputs(name) == before
    (work / "input" / name).write_bytes(b"other")
    assert nodes[kind].fingerprint_inputs(name) != before


def test_without_a_temporary_folder_there_are_no_examples_and_a_word_in_the_log(nodes, work, caplog):
    for file in (work / "temp").iterdir():
        file.unlink()
    (work / "temp").rmdir()
    (work / "temp").write_text("no folder")
    (socket,) = nodes["MultiTalkLoadImage"].GET_SCHEMA().inputs
    assert socket.choices == OWN["MultiTalkLoadImage"] and "The example pictures and voices are not in" in caplog.text
