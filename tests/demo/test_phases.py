"""Every phase of the training from nothing, a step each, up to files that the engine opens."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from demo import speech
from demo.training import __main__ as training
from demo.training import clips, export, guidance, transformer, vae
from demo.training.run import Setup, load_average
from pipeline.weights import build

PHASES = list(training.PHASES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """States and clips of all phases: steps of one window, crops of one clip, shards of one short clip."""

    def tone(text, voice, words_per_minute, pitch, tract_length):
        del text, voice, words_per_minute, tract_length
        return np.sin(np.arange(16000) * pitch / 50).astype(np.float32)

    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speech, "speak", tone)  # as espeak-ng is not everywhere
        patch.setattr(vae, "CROPS", 1)
        patch.setattr(clips, "CLIP_FRAMES", (9,))
        patch.setattr(clips, "CLIPS_PER_SHARD", 2)
        patch.setattr(clips, "GREY_TAILS", 1)
        patch.setattr(transformer, "BATCH", 1)
        patch.setattr(torch.optim, "Muon", partial(torch.optim.Muon, ns_steps=1))  # of five, which take most of a step
        training.main(["--folder", str(folder), "--steps", "1", "--device", "cpu"])
    return folder


@pytest.mark.parametrize("phase", ["vae", "speech_encoder", "transformer", "guidance"])
def test_a_phase_changes_its_weights_and_keeps_them_finite(phase, folder):
    state = torch.load(folder / f"{phase}.pt")
    assert state["step"] == 1
    assert all(value.isfinite().all() for value in state["model"].values())
    starts = {"guidance": load_average("transformer", Setup(folder))}
    if phase in starts:
        assert any(not torch.equal(state["model"][key], value) for key, value in starts[phase].items())


def test_the_clips_are_of_finite_latents_and_features(folder):
    setup = Setup(folder)
    assert len(clips.load(setup)) == 2
    for clip in clips.load(setup):
        assert clip.latents.shape[:2] == (16, 3) and clip.latents.isfinite().all()
        assert clip.features.shape[1:] == (9 + 10, 3, 128) and clip.features.isfinite().all()
        assert clip.weights.shape == clip.latents.shape[2:]
    assert [clip.context_latents is None for clip in clips.load(setup)] == [False, True]


def test_a_phase_needs_those_before_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"python -m demo\.training transformer"):
        guidance.train(Setup(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"python -m demo\.training clips"):
        transformer.train(Setup(tmp_path))


def test_the_result_opens_as_the_files_of_a_model(folder, tmp_path):
    export.main([str(tmp_path), "--run", str(folder)])
    build.load_transformer(
        tmp_path / "diffusion_models/wan2.1_i2v_480p_demo.safetensors",
        tmp_path / "model_patches/multitalk_demo.safetensors",
    )
    build.load_vae(tmp_path / "vae/wan_2.1_vae_demo.safetensors")
    build.load_audio_encoder(tmp_path / "audio_encoders/wav2vec2_demo.safetensors")
    build.load_image_encoder(tmp_path / "clip_vision/clip_vision_h_demo.safetensors")
    assert build.load_text_encoder(tmp_path / "text_encoders/umt5_demo.safetensors").encode("a person talks").ndim == 2
