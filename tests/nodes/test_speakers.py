"""Boxes and masks go through the nodes and come out as the published program's masks, and as what it makes of them."""

import dataclasses
import sys
from types import SimpleNamespace

import pytest
import torch
from multitalk_pack.pipeline.conditioning.speakers import to_latent_masks, to_token_masks
from multitalk_pack.pipeline.models.transformer.audio_attention import AudioCrossAttention
from multitalk_pack.pipeline.models.transformer.speakers import reference_attention
from multitalk_pack.pipeline.shapes import LATENT_CHANNELS, VAE_STRIDE_SPACE, LatentSize
from support import pack
from support.golden import Golden
from support.transformer import from_golden

REF_MASKS = Golden("ref_masks")
SEVERAL = [case for case, facts in REF_MASKS.cases.items() if facts["people"] > 1]
KINDS = ("boxes", "masks", "batch")


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pack")
    return pack.node_classes(pack.load(folder, folder))


VAE = SimpleNamespace(encode=None, decode=None, first_stage_model=None)  # it encodes nothing here


def condition(nodes, image_hw, resolution, **speakers):
    """Conditioning of a picture of `image_hw` at `resolution`, which is a name or a height and a width."""
    height, width = (480, 832) if isinstance(resolution, str) else resolution
    text = [[torch.ones(1, 3, 8), {}]]
    clip_output = SimpleNamespace(penultimate_hidden_states=torch.ones(1, 257, 8))
    inputs = {"dub_video": False, "prompt": "", "negative_prompt": "", "vae": VAE} | speakers
    conditioning, *_ = (
        nodes["MultiTalkCondition"]
        .execute(
            image=torch.full((1, *image_hw, 3), 0.5),
            image_encoder=clip_output,
            positive=text,
            negative=text,
            resolution=resolution if isinstance(resolution, str) else "custom",
            width=width,
            height=height,
            **inputs,
        )
        .args
    )
    return conditioning


def speaker_inputs(nodes, boxes, image_hw, kind):
    """`boxes` (left, top, right, bottom in pixels) as the node's inputs: boxes, masks, or masks in one batch."""
    masks = torch.zeros(len(boxes), *image_hw)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = 1
    if kind == "batch":
        return {"ref_target_masks": masks}
    speakers = None
    for mask, box in zip(masks, boxes, strict=True):
        percent = [100 * edge / side for edge, side in zip(box, image_hw[::-1] * 2, strict=True)]
        mask_input = None if kind == "boxes" else mask[None]
        speakers = nodes["MultiTalkSpeaker"].execute(*percent, speakers=speakers, mask=mask_input).args[0]
    return {"speakers": speakers}


def published_boxes(facts):
    """The boxes of a case as left, top, right, bottom in pixels; None for equal shares of the width."""
    height, width = facts["image_hw"]
    if facts["bbox"]:
        rows_first = [[int(edge) for edge in facts["bbox"][f"person{person}"]] for person in (1, 2)]
        return [(left, top, right, min(bottom, height)) for top, left, bottom, right in rows_first]
    margin, share = facts["face_scale"], width // 2
    top, bottom = int(height * margin), int(height * (1 - margin))
    return [(int(share * margin + x), top, int(share * (1 - margin) + x), bottom) for x in (0, share)]


def matched(conditioning, num_voices, silence=None):
    """Embeds of voices and the conditioning, as the sampler makes them fit each other."""
    audio = sys.modules[f"{pack.NAME}.pipeline.audio.embeds"].AudioEmbeds(torch.zeros(num_voices, 5, 12, 8), 5)
    match_speakers = sys.modules[f"{pack.NAME}.pipeline.conditioning.conditioning"].match_speakers
    return match_speakers(dataclasses.replace(audio, silence=silence), conditioning)


def latent_masks(conditioning):
    return to_latent_masks(conditioning.speaker_masks, LatentSize.of_video(1, conditioning.height, conditioning.width))


def test_two_speakers_in_the_same_place_are_refused(nodes):
    box = (0.0, 0.0, 50.0, 100.0)  # the node's defaults
    first = nodes["MultiTalkSpeaker"].execute(*box).args[0]
    both = nodes["MultiTalkSpeaker"].execute(*box, speakers=first).args[0]
    with pytest.raises(ValueError, match="Speakers 1 and 2 are in the same place"):
        condition(nodes, (90, 160), (64, 64), speakers=both)


def test_a_voice_that_has_no_sound_is_told_and_nobody_takes_its_place(nodes):
    voice = {"waveform": torch.zeros(1, 1, 16000), "sample_rate": 16000}
    widgets = {"num_frames": 0, "fps": 25.0, "multi_audio_type": "para", "normalize_loudness": True, "start_times": ""}
    with pytest.raises(ValueError, match="audio_2 has no sound"):
        nodes["MultiTalkEncodeAudio"].execute(audio_encoder=None, audio_1=voice, audio_2=None, audio_3=voice, **widgets)


def test_beside_an_only_speaker_with_a_place_the_rest_of_the_picture_listens_in_silence(nodes):
    one = nodes["MultiTalkSpeaker"].execute(50.0, 0.0, 100.0, 100.0).args[0]
    conditioning = condition(nodes, (64, 64), (64, 64), speakers=one)
    silence = torch.randn(12, 8)
    audio, conditioning = matched(conditioning, num_voices=1, silence=silence)
    right = torch.zeros(64, 64)
    right[:, 32:] = 1
    assert torch.equal(conditioning.speaker_masks, torch.stack((right, 1 - right, torch.zeros(64, 64))))
    assert not audio.features[0].any() and torch.equal(audio.features[1], silence.expand(5, 12, 8))


def test_an_only_speaker_without_a_place_needs_no_listener(nodes):
    audio, conditioning = matched(condition(nodes, (64, 64), (64, 64)), num_voices=1, silence=torch.zeros(12, 8))
    assert conditioning.speaker_masks is None and audio.num_speakers == 1


def test_embeds_that_know_no_silence_tell_that_the_place_is_not_used(nodes, caplog):
    one = nodes["MultiTalkSpeaker"].execute(0.0, 0.0, 50.0, 100.0).args[0]
    audio, conditioning = matched(condition(nodes, (64, 64), (64, 64), speakers=one), num_voices=1)
    assert conditioning.speaker_masks is None and audio.num_speakers == 1
    assert "The only speaker's place is not used" in caplog.text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", SEVERAL)
def test_places_become_the_published_masks(nodes, case, kind):
    facts = REF_MASKS.cases[case]
    image_hw, resolution = tuple(facts["image_hw"]), facts["size"].removeprefix("multitalk-") + "p"
    speakers = speaker_inputs(nodes, published_boxes(facts), image_hw, kind)
    conditioning = condition(nodes, image_hw, resolution, **speakers)
    REF_MASKS.assert_close(latent_masks(conditioning), f"out.{case}.masks")


def test_speakers_without_places_have_the_published_shares(nodes):
    facts = REF_MASKS.cases["two_default"]
    _, conditioning = matched(condition(nodes, tuple(facts["image_hw"]), "480p"), num_voices=2)
    REF_MASKS.assert_close(latent_masks(conditioning), "out.two_default.masks")


def bounding_box(mask, scale):
    """The box that a mask fills, in units of `scale`."""
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    edges = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    return tuple(scale * edge.item() for edge in edges)


def conditioning_with(nodes, masks, scale, kind):
    """Conditioning of a picture whose speakers' `masks`, `p+1 h w` at `scale` pixels each, come as a kind of inputs."""
    image_hw = tuple(scale * side for side in masks.shape[1:])
    boxes = [bounding_box(mask, scale) for mask in masks[:-1]]
    return condition(nodes, image_hw, image_hw, **speaker_inputs(nodes, boxes, image_hw, kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", ["a", "b"])
def test_the_transformer_with_the_nodes_masks_is_as_published(nodes, case, kind):
    golden = Golden("dit_multi")
    reference_masks = golden[f"in.{case}.ref_target_masks"]
    masks = latent_masks(conditioning_with(nodes, reference_masks, VAE_STRIDE_SPACE, kind))
    assert torch.equal(masks, reference_masks)
    transformer, size = from_golden(golden), LatentSize(*golden.cases[case]["latent_thw"])
    tensors = {name: golden[f"in.{case}.{name}"] for name in ("y", "clip_fea", "context", "audio", "x", "t")}
    assert tensors["x"].shape[0] == LATENT_CHANNELS
    window = transformer.prepare_window(size, tensors["y"], tensors["clip_fea"][0], masks)
    inputs = transformer.prepare_pass(window, tensors["context"], tensors["audio"])
    golden.assert_close(transformer(tensors["x"], tensors["t"], inputs), f"out.{case}.velocity")


@pytest.mark.parametrize("kind", KINDS)
def test_the_audio_attention_with_the_nodes_masks_is_as_published(nodes, kind):
    golden, case = Golden("audio_cross_attention_multi"), "map_from_qk"
    config = golden.config
    frames, *grid = config["grid"]
    reference_masks = golden[f"in.{case}.token_masks"].unflatten(1, grid)
    masks = latent_masks(conditioning_with(nodes, reference_masks, 2 * VAE_STRIDE_SPACE, kind))
    tokens = to_token_masks(masks, LatentSize(frames, *masks.shape[1:])).flatten(1)
    query, key = (golden[f"in.{case}.{name}"].transpose(1, 2) for name in "qk")
    reference_map = reference_attention(query, key, tokens)
    golden.assert_close(reference_map, f"mid.{case}.ref_attn_map")
    attention = AudioCrossAttention(config["dim"], config["encoder_hidden_states_dim"], config["num_heads"])
    attention.load_state_dict(golden.state())
    voices = golden[f"in.{case}.audio_tokens"][0]
    voices = voices.unflatten(1, (2, golden.cases[case]["tokens_per_person"])).transpose(0, 1)  # p t n d
    attn_out = attention(golden[f"in.{case}.x"][0], attention.audio_kv(voices), reference_map)
    golden.assert_close(attn_out[None], f"out.{case}.x")


PICTURE_HW = (60, 120)
BOXES = [{"x": 60, "y": 0, "width": 60, "height": 60}, {"x": 0, "y": 0, "width": 30, "height": 60, "metadata": {}}]
PERCENT = [(50, 0, 100, 100), (0, 0, 25, 100)]


def voice(level):
    return {"waveform": torch.full((1, 1, 16000), level), "sample_rate": 16000}


def speakers_of(nodes, **inputs):
    """Speakers of the node that boxes are drawn on, with a canvas as large as the picture."""
    canvas = {"width": PICTURE_HW[1], "height": PICTURE_HW[0]}
    return nodes["MultiTalkSpeakers"].execute(**(canvas | inputs)).args[0]


def test_box_n_is_the_place_of_voice_n(nodes):
    speakers = speakers_of(nodes, boxes=BOXES, audio_1=voice(0.25), audio_2=voice(0.5))
    assert [speaker.place.box for speaker in speakers] == PERCENT
    assert [speaker.voice.samples.max().item() for speaker in speakers] == [0.25, 0.5]


@pytest.mark.parametrize("batch", [BOXES, [BOXES], [BOXES, []]])
def test_detected_boxes_are_speakers_from_left_to_right_in_pixels_of_the_picture(nodes, batch):
    picture = torch.zeros(1, *PICTURE_HW, 3)
    speakers = speakers_of(nodes, bboxes=batch, background=picture, width=999, height=999, boxes=[BOXES[0]])
    assert [speaker.place.box for speaker in speakers] == PERCENT[::-1]


def test_one_detected_box_is_one_speaker(nodes):
    (speaker,) = speakers_of(nodes, bboxes=BOXES[0])
    assert speaker.place.box == PERCENT[0]


def test_voices_without_boxes_share_the_width(nodes):
    speakers = speakers_of(nodes, audio_1=voice(0.25), audio_2=voice(0.5))
    shared = condition(nodes, PICTURE_HW, (64, 128), speakers=speakers)
    _, default = matched(condition(nodes, PICTURE_HW, (64, 128)), num_voices=2)
    assert torch.equal(shared.speaker_masks, default.speaker_masks)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"boxes": BOXES, "audio_1": voice(0.5), "audio_2": voice(0.5), "audio_3": voice(0.5)}, "2 boxes for 3 voices"),
        ({"boxes": [{"x": 200, "y": 0, "width": 9, "height": 9}]}, "Box 1 of boxes lies outside of 120x60 pixels"),
        ({"bboxes": [[1, 2, 3, 4]]}, "bboxes must be boxes"),
        ({"bboxes": [{"x": 0, "y": 0, "width": float("nan"), "height": 9}]}, "bboxes must be boxes"),
        ({"bboxes": "faces"}, "bboxes must be boxes"),
    ],
)
def test_boxes_that_place_nobody_are_refused(nodes, inputs, message):
    with pytest.raises(ValueError, match=message):
        speakers_of(nodes, **inputs)


def test_an_older_comfyui_has_the_node_without_the_canvas(nodes, monkeypatch):
    monkeypatch.delattr(sys.modules["comfy_api.latest"].io, "BoundingBoxes")
    assert "boxes" not in [socket.id for socket in nodes["MultiTalkSpeakers"].GET_SCHEMA().inputs]


def test_a_voice_goes_with_its_speaker_and_nobody_speaks_twice(nodes):
    audio = sys.modules[f"{pack.NAME}.nodes.audio"]
    dialogue = sys.modules[f"{pack.NAME}.pipeline.audio.clips"].Dialogue
    first = nodes["MultiTalkSpeaker"].execute(0.0, 0.0, 50.0, 100.0, audio=voice(0.25)).args[0]
    both = nodes["MultiTalkSpeaker"].execute(50.0, 0.0, 100.0, 100.0, speakers=first, audio=voice(0.5)).args[0]
    speeches = audio.speeches_of(dialogue(), both, {}, "")
    assert [speech.sound.samples.max().item() for speech in speeches] == [0.25, 0.5]
    half = nodes["MultiTalkSpeaker"].execute(50.0, 0.0, 100.0, 100.0, speakers=first).args[0]
    for speakers, voices, message in (
        (both, {"audio_1": voice(0.5)}, "The speakers have their voices, and there is audio_1 too"),
        (half, {}, "Speaker 2 of 2 has no voice"),
        (None, {}, "There is no voice"),
    ):
        with pytest.raises(ValueError, match=message):
            audio.speeches_of(dialogue(), speakers, voices, "")


def test_a_chain_of_clips_is_a_dialogue_with_its_picture(nodes):
    widgets = {"start": -1.0, "pause": 0.5}
    first = nodes["MultiTalkDialogue"].execute(audio=voice(0.5), speaker=1, **widgets)
    second = nodes["MultiTalkDialogue"].execute(audio=voice(0.5), speaker=2, dialogue=first.args[0], **widgets)
    assert [interval.start_s for interval in second.args[0].turns()] == [0.0, 1.5]
    assert second.ui.value.shape[0] == 1 and second.ui.value.shape[1] > first.ui.value.shape[1]
    audio = sys.modules[f"{pack.NAME}.nodes.audio"]
    assert [speech.start_s for speech in audio.speeches_of(second.args[0], None, {}, "")] == [0.0, 1.5]
    with pytest.raises(ValueError, match="There is a dialogue, and audio_2 too"):
        audio.speeches_of(second.args[0], None, {"audio_2": voice(0.5)}, "")


def test_one_switch_makes_two_voices_of_a_stereo_recording(nodes):
    stereo = {
        "waveform": torch.stack((torch.full((16000,), 0.25), torch.full((16000,), 0.5)))[None],
        "sample_rate": 16000,
    }
    split = nodes["MultiTalkSplitRecording"]
    dialogue = split.execute(audio=stereo, split="a speaker on each channel", transcript="").args[0]
    assert [speech.sound.samples.max().item() for speech in dialogue.speeches()] == [0.25, 0.5]
    text = "1\n00:00:00,000 --> 00:00:00,500\nAnn: Yes?\n\n2\n00:00:00,500 --> 00:00:01,000\nBob: No.\n"
    dialogue = split.execute(audio=stereo, split="transcript", transcript=text).args[0]
    assert [speech.start_s for speech in dialogue.speeches()] == [0.0, 0.5]
