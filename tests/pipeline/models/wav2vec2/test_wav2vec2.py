"""The speech encoder at the video's frame rate."""

from contextlib import contextmanager

import pytest
import torch
from multitalk_pack.pipeline.errors import AudioError
from multitalk_pack.pipeline.models.wav2vec2 import conv_features
from multitalk_pack.pipeline.models.wav2vec2.encoder import encode
from support.tiny_audio import tiny_encoder
from torch.nn.functional import interpolate


@pytest.fixture(scope="module")
def model():
    return tiny_encoder().eval()


def test_features_are_resampled_between_the_convolutions_and_the_transformer(model):
    waveform = torch.randn(8000)
    with torch.no_grad():
        features = interpolate(model.feature_extractor(waveform[None]), size=12, mode="linear", align_corners=True)
        hidden, _ = model.feature_projection(features.transpose(1, 2))
        hidden = model.encoder.layer_norm(hidden + model.encoder.pos_conv_embed(hidden))
        layers = []
        for layer in model.encoder.layers:
            hidden = layer(hidden)
            hidden = hidden[0] if isinstance(hidden, tuple) else hidden
            layers.append(hidden[0])
    assert torch.allclose(encode(model, waveform, num_frames=12), torch.stack(layers, dim=1), atol=1e-5)


def test_the_model_is_left_as_it_was(model):
    waveform = torch.randn(4000)
    with torch.no_grad():
        before = model(waveform[None]).last_hidden_state
        encode(model, waveform, num_frames=3)
        assert torch.equal(model(waveform[None]).last_hidden_state, before)
    with interrupted(model.encoder), pytest.raises(KeyboardInterrupt):
        encode(model, waveform, num_frames=3)
    assert not model.feature_extractor._forward_hooks


@contextmanager
def interrupted(module):
    def interrupt(module, args):
        raise KeyboardInterrupt

    handle = module.register_forward_pre_hook(interrupt)
    yield
    handle.remove()


def test_a_model_fresh_from_its_config_gives_the_same_every_time():
    model = tiny_encoder().train()
    waveform = torch.randn(8000)
    assert torch.equal(encode(model, waveform, 12), encode(model, waveform, 12))


def test_normalisation_makes_the_gain_irrelevant(model):
    waveform = torch.randn(8000)
    loud, quiet = (encode(model, gain * waveform + 0.1, 12, normalize=True) for gain in (1.0, 0.1))
    assert torch.allclose(loud, quiet, atol=1e-3)


def test_half_precision_models_are_fed_their_own_type():
    features = encode(tiny_encoder().bfloat16(), torch.randn(4000), 6)
    assert features.dtype == torch.float32
    assert features.isfinite().all()


def test_too_few_samples_are_refused(model):
    assert encode(model, torch.randn(400), num_frames=1).shape == (1, 3, 16)
    with pytest.raises(AudioError, match="needs 400 samples, got 399"):
        encode(model, torch.randn(399), num_frames=1)


@pytest.mark.parametrize(("norm", "bias"), [("group", False), ("group", True), ("layer", True)])
@pytest.mark.parametrize("num_samples", [400, 719, 720, 16000, 100_001])
def test_features_of_chunks_are_those_of_the_whole(norm, bias, num_samples, monkeypatch):
    monkeypatch.setattr(conv_features, "CHUNK_FRAMES", 7)
    extractor = tiny_encoder(feat_extract_norm=norm, conv_bias=bias).feature_extractor
    for layer in extractor.conv_layers:
        if hasattr(layer, "layer_norm"):
            torch.nn.init.normal_(layer.layer_norm.weight)
            torch.nn.init.normal_(layer.layer_norm.bias)
    waveform = torch.randn(num_samples) + 0.3
    with torch.no_grad():
        whole = extractor.eval()(waveform[None])[0]
        assert torch.allclose(conv_features.conv_features(extractor, waveform), whole, atol=1e-5)
