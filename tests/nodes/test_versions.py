"""The pack under a torch or a ComfyUI that is too old, and without gguf, which only GGUF files need."""

import importlib.abc
import sys

import pytest
import torch
from support import comfy_standin, pack


@pytest.fixture
def load(tmp_path, monkeypatch):
    """`load(comfyui)` imports the pack in a ComfyUI of that version."""

    def load(comfyui: str = "0.14.0"):
        monkeypatch.setattr(comfy_standin, "COMFYUI_VERSION", comfyui)
        return pack.load(tmp_path, tmp_path)

    return load


@pytest.mark.parametrize("version", ["0.8.0", "0.13.9", "0.13"])
def test_an_older_comfyui_is_refused_in_one_sentence(load, version):
    with pytest.raises(ImportError) as refusal:
        load(version)
    assert str(refusal.value) == f"MultiTalk needs ComfyUI 0.14.0, this is {version}."


@pytest.mark.parametrize("version", ["2.4.1+cu121", "1.13.1"])
def test_an_older_torch_is_refused_in_one_sentence(load, version, monkeypatch):
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(ImportError) as refusal:
        load()
    assert str(refusal.value) == f"MultiTalk needs torch 2.5, this is {version}."


def test_it_is_said_before_anything_of_comfyui_is_missed(load, monkeypatch):
    class Missing(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path, target=None):
            if name.startswith(f"{pack.NAME}.nodes"):
                pytest.fail("the nodes were imported")

    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    with pytest.raises(ImportError, match="needs ComfyUI"):
        load("0.8.0")


@pytest.mark.parametrize(("comfyui", "torch_version"), [("0.14.0", "2.5.0"), ("1.0", "2.13.0+cpu"), ("0.33.1", "2.10")])
def test_what_is_new_enough_is_taken(load, comfyui, torch_version, monkeypatch):
    monkeypatch.setattr(torch, "__version__", torch_version)
    assert len(pack.node_classes(load(comfyui))) > 10


def test_the_nodes_are_there_without_gguf(load, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert len(pack.node_classes(load())) > 10
