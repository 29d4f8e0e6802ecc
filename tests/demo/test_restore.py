"""The bundled weights become a training, and a training becomes the bundled weights."""

from pathlib import Path

import torch
from safetensors.torch import load_file

PACK = Path(__file__).resolve().parents[2]


def test_what_is_restored_is_exported_as_it_was(monkeypatch):
    monkeypatch.syspath_prepend(str(PACK))  # `demo` is run from the repository's root
    from demo import export, restore

    stages = {stage: network.state_dict() for stage, network in restore.networks(export.MODELS_FOLDER).items()}
    for name, state in export.parts(stages, restore.UNIT).items():
        bundled = load_file(export.MODELS_FOLDER / f"{name}.safetensors")
        assert state.keys() == bundled.keys()
        for key, tensor in state.items():
            torch.testing.assert_close(tensor.to(bundled[key].dtype), bundled[key], rtol=2e-3, atol=1e-6)


def test_every_restored_stage_is_one_that_its_training_goes_on_from(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(PACK))
    from demo import restore, run, train_audio, train_transformer, train_vae, windows

    for module in (restore, run, train_vae, windows):
        monkeypatch.setattr(module, "RUN_FOLDER", tmp_path)
    restore.main()
    bundled = restore.networks(restore.MODELS_FOLDER)
    for train, network in (
        (train_vae.train, bundled["eyes"]), (train_vae.train_decoder, bundled["eyes"]),
        (train_vae.train_eyes, bundled["eyes"]), (train_audio.train, bundled["audio"].encoder),
        (train_transformer.train, bundled["transformer"]),
    ):  # fmt: skip
        learned = train(1, torch.device("cpu")).state_dict()
        for key, tensor in network.state_dict().items():
            torch.testing.assert_close(learned[key], tensor, rtol=0, atol=0)
