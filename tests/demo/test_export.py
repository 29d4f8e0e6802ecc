"""The bundled weights become finished phases, and finished phases become files of weights."""

import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import load_file

from demo.training import export, guidance, restore, speech_encoder, transformer, vae
from demo.training.run import Setup


def test_folding_statistics_into_the_vae_changes_no_picture():
    torch.manual_seed(0)
    plain, folded = (AutoencoderKLWan(base_dim=4, z_dim=16, num_res_blocks=1).eval() for _ in range(2))
    folded.load_state_dict(plain.state_dict())
    mean, std = torch.randn(16, 1, 1, 1), torch.rand(16, 1, 1, 1) + 0.5
    export.fold_statistics(folded, (mean, std), export.PUBLISHED)
    frames = torch.randn(1, 3, 5, 16, 16)
    with torch.no_grad():
        latents = plain.encode(frames).latent_dist.mode()
        folded_latents = folded.encode(frames).latent_dist.mode()
        published_mean, published_std = (value[:, None, None, None] for value in export.PUBLISHED)
        unit = (folded_latents[0] - published_mean) / published_std
        assert torch.allclose(unit, (latents[0] - mean) / std, atol=1e-3)
        assert torch.allclose(folded.decode(folded_latents).sample, plain.decode(latents).sample, atol=1e-3)


def test_the_bundled_weights_are_exported_as_they_are():
    states = {phase: network.state_dict() for phase, network in restore.networks(restore.WEIGHTS_FOLDER).items()}
    for name, state in export.file_states(states, restore.UNIT).items():
        bundled = load_file(restore.WEIGHTS_FOLDER / f"{name}.safetensors")
        assert state.keys() == bundled.keys()
        for key, tensor in state.items():
            torch.testing.assert_close(tensor.to(bundled[key].dtype), bundled[key], rtol=2e-3, atol=1e-6)


def test_every_phase_takes_the_bundled_weights_for_its_own_result(tmp_path):
    restore.main(["--run", str(tmp_path)])
    bundled, setup = restore.networks(restore.WEIGHTS_FOLDER), Setup(tmp_path)
    results = {
        "vae": vae.train(setup),
        "speech_encoder": speech_encoder.train(setup).encoder,
        "transformer": transformer.train(setup),
        "guidance": guidance.train(setup),
    }
    bundled["speech_encoder"] = bundled["speech_encoder"].encoder  # its heads are not bundled
    for phase, network in bundled.items():
        state = results[phase].state_dict()
        for key, tensor in network.state_dict().items():
            torch.testing.assert_close(state[key], tensor, rtol=0, atol=0)
