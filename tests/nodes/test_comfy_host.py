"""Ours and other nodes' models make room for each other through ComfyUI's model management."""

import importlib
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from PIL import Image
from support import pack


class Card:
    """A GPU of `total` bytes, of which other nodes' models hold `others`, as ComfyUI's management counts it."""

    def __init__(self, total: int, others: int):
        self.total, self.others = total, others
        self.guests: list[torch.nn.Module] = []

    @contextmanager
    def resident(self, network: torch.nn.Module, host: object) -> Iterator[torch.nn.Module]:
        self.guests.append(network)
        yield network
        self.guests.remove(network)

    def free_memory(self, size: int, device: torch.device) -> None:
        self.others = max(0, min(self.others, self.total - int(size)))

    def get_free_memory(self, device: torch.device) -> int:
        return self.total - self.others


@pytest.fixture
def card(tmp_path, monkeypatch):
    pack.load(tmp_path, tmp_path)
    card, management = Card(10_000, 8_000), sys.modules["comfy.model_management"]
    monkeypatch.setattr(management, "get_torch_device", lambda: torch.device("meta"))
    monkeypatch.setattr(management, "get_total_memory", lambda device: card.total)
    monkeypatch.setattr(management, "minimum_inference_memory", lambda: 1_000)
    monkeypatch.setattr(management, "extra_reserved_memory", lambda: 600)
    monkeypatch.setattr(management, "free_memory", card.free_memory)
    monkeypatch.setattr(management, "get_free_memory", card.get_free_memory)
    return card


@pytest.fixture
def host_module(card, monkeypatch):
    module = sys.modules[f"{pack.NAME}.nodes.comfy_host"]
    monkeypatch.setattr(module, "resident", card.resident)
    return module


def test_an_encoder_takes_only_the_room_it_needs_and_goes_home(card, host_module):
    network = torch.nn.Linear(10, 100, bias=False)  # 4000 bytes
    with host_module.at_work(network, host_module.ComfyHost()):
        assert card.guests == [network] and card.others == 5_000
    assert not card.guests


def test_an_encoder_that_does_not_fit_works_on_the_cpu(card, host_module):
    network = torch.nn.Linear(30, 100, bias=False)  # 12000 bytes
    with host_module.at_work(network, host_module.ComfyHost()):
        assert not card.guests


def test_a_run_may_take_the_whole_card_but_what_comfyui_holds_back(card, host_module):
    assert host_module.ComfyHost().free_memory() == card.total - 600
    card.others = 3_000
    assert host_module.PreflightHost().free_memory() == card.total - 3_000 - 600
    assert card.others == 3_000


def test_memory_is_pinned_unless_comfyui_was_told_not_to(host_module, monkeypatch):
    assert host_module.ComfyHost().can_pin
    monkeypatch.setattr(sys.modules["comfy.cli_args"].args, "disable_pinned_memory", True)
    assert not host_module.ComfyHost().can_pin


def test_a_node_shows_the_remaining_time_in_words_and_the_finished_window(host_module):
    updates, server = sys.modules["comfy.utils"].ProgressBar.updates, sys.modules["server"].PromptServer.instance
    updates.clear()
    progress = sys.modules[f"{pack.NAME}.pipeline.host"].Progress
    previews = importlib.import_module(f"{pack.NAME}.pipeline.generation.preview")
    host, latents = host_module.ComfyHost(), torch.zeros(16, 3, 4, 4)
    preview = previews.LatentPreview(latents, latents[:, 0], torch.zeros(3, 32, 32))
    host.report(progress("sampling", 0.0, 1, 2, 1, 4), preview)
    green = torch.full((3, 5, 8, 12), -1.0)
    green[1] = 1.0
    green[2, 3:] = 1.0  # the second picture that is shown is another one
    host.report(progress("done", 0.5, 1, 2), previews.FramePreview(green))
    (node, text), (again, later) = server.texts[-2:]
    assert (node, again) == ("1", "1") and text == "sampling, window 1 of 2, step 1 of 4"
    assert later.startswith("done, window 1 of 2, about ") and later.endswith(" left")
    (_, _, latents), (value, total, (kind, picture, _)) = updates[-2:]
    assert (value, total, latents[0], latents[1].size) == (500, 1000, "JPEG", (4, 4))  # which is scaled by ComfyUI
    file = io.BytesIO()
    picture.save(file, format=kind, quality=95, compress_level=1)  # as ComfyUI does
    moving = Image.open(file)
    moving.load()
    assert (kind, moving.n_frames, moving.size, moving.info["duration"]) == ("WEBP", 2, (12, 8), 120)
    red, green_level, blue = moving.convert("RGB").getpixel((3, 3))
    assert green_level > 240 and max(red, blue) < 30


def test_what_is_known_before_the_first_step_stays_above_the_progress(host_module):
    server = sys.modules["server"].PromptServer.instance
    progress = sys.modules[f"{pack.NAME}.pipeline.host"].Progress
    host = host_module.ComfyHost()
    host.show_headline("145 frames in 2 windows")
    host.report(progress("sampling", 0.1, 1, 2, 1, 4))
    texts = [text for _, text in server.texts[-2:]]
    assert texts == ["145 frames in 2 windows", "145 frames in 2 windows\nsampling, window 1 of 2, step 1 of 4"]


@pytest.mark.parametrize(
    ("keeps_windows", "window", "text"),
    [(True, 4, "cancelled; 3 of 5 windows kept"), (False, 4, "cancelled"), (True, 0, "cancelled")],
)
def test_a_cancelled_node_shows_what_is_left_of_the_run(keeps_windows, window, text, host_module, monkeypatch):
    class Interruption(BaseException):
        """ComfyUI's own."""

    management, server = sys.modules["comfy.model_management"], sys.modules["server"].PromptServer.instance
    progress = sys.modules[f"{pack.NAME}.pipeline.host"].Progress
    host = host_module.ComfyHost(keeps_windows)
    host.report(progress("sampling", 0.7, window, 5 if window else 0))
    host.check_cancelled()
    assert not server.texts[-1][1].startswith("cancelled")

    def interrupt():
        raise Interruption

    monkeypatch.setattr(management, "processing_interrupted", lambda: True)
    monkeypatch.setattr(management, "throw_exception_if_processing_interrupted", interrupt)
    monkeypatch.setattr(sys.modules["comfy.utils"].ProgressBar, "update_absolute", lambda *_: interrupt())
    for notice in (host.check_cancelled, lambda: host.report(progress("image", 0.7, window, 5 if window else 0))):
        server.texts.clear()
        with pytest.raises(Interruption):
            notice()
        assert server.texts == [("1", text)]
