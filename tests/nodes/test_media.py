"""Loaders of pictures and voices: the bundled examples and the user's own files, each where it belongs."""

import numpy as np
import pytest
import torch
from multitalk_pack.pipeline.media.picture import read_image
from PIL import Image
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


def test_a_picture_is_read_as_the_command_line_reads_it(nodes, work):
    picture, exif = Image.new("RGB", (48, 32), (200, 120, 90)), Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    picture.save(work / "input" / "phone.jpg", exif=exif, quality=95)
    image, mask = nodes["MultiTalkLoadImage"].execute("phone.jpg").args
    assert image.shape == (1, 48, 32, 3) and not mask.any()
    assert torch.equal((image[0] * 255).round().byte(), read_image(work / "input" / "phone.jpg"))


def test_transparent_parts_are_white_but_for_what_the_mask_editor_painted(nodes, work):
    """The editor keeps its files in a folder of its own, colours and all."""
    pixels = np.full((32, 48, 4), 90, np.uint8)
    pixels[:, :24, 3], pixels[:, 24:, 3] = 0, 255
    (work / "input" / "clipspace").mkdir()
    for name in ("cut_out.png", "clipspace/clipspace-painted-masked-1.png"):
        Image.fromarray(pixels).save(work / "input" / name)
    for name, left in (("cut_out.png", 255), ("clipspace/clipspace-painted-masked-1.png", 90)):
        image, mask = nodes["MultiTalkLoadImage"].execute(name).args
        assert image.shape == (1, 32, 48, 3) and mask.shape == (1, 32, 48)
        assert (image[0, 0, [0, 47], 0] * 255).tolist() == pytest.approx([left, 90])
        assert (mask[..., :24] == 1).all() and (mask[..., 24:] == 0).all()


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
