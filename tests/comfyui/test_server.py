"""The shipped workflows in a real ComfyUI: run to a video, cached, shown, cancelled, refused."""

import io
import itertools
import json
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import av
import numpy as np
import psutil
import pytest
from PIL import Image
from support import pack
from support.comfy_server import NEEDS_COMFYUI
from support.workflow_files import inputs_of, small, with_own_files

pytestmark = NEEDS_COMFYUI
API = pack.PACK / "workflows" / "api"
LOCAL = sorted(path.stem for path in API.glob("*.json") if path.stem not in ("remote", "two_faces"))  # others' models
QUALITY = "single_speaker_quality"
CODED_LEVELS = 8  # of 255, by which a coded frame may move where one pixel was another by one
VIDEO_S = 300  # how long a tiny video may take on a busy machine


def workflow(name: str, num_frames: int = 9, **sampler: object) -> dict:
    """A shipped workflow at a tiny size; `sampler` are inputs of its sampler."""
    prompt = small(json.loads((API / f"{name}.json").read_text()), num_frames)
    inputs_of(prompt, "MultiTalkSampler").update(sampler)
    return prompt


def messages(history: dict) -> dict[str, dict]:
    """Messages about a run, by their names."""
    return dict(history["status"]["messages"])


def video(server, history: dict) -> Path:
    """The file that SaveVideo wrote."""
    assert history["status"]["status_str"] == "success", messages(history)
    saved = [entry for output in history["outputs"].values() for entry in output.get("images", [])]
    video = next(entry for entry in saved if entry["filename"].endswith(".mp4"))
    return server.base / "output" / video["subfolder"] / video["filename"]


def frames(path: Path) -> np.ndarray:
    """`f h w c`, uint8."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def loudness(samples: np.ndarray, rate_hz: int, num_frames: int) -> np.ndarray:
    """The level of a mono sound in each video frame."""
    edges = np.arange(num_frames + 1) * rate_hz // 25
    return np.array([np.abs(samples[start:end]).mean() for start, end in itertools.pairwise(edges)])


def mono(path: Path) -> tuple[np.ndarray, int]:
    """A file's sound and its rate."""
    with av.open(str(path)) as container:
        rate_hz = container.streams.audio[0].rate
        chunks = [chunk.to_ndarray() for chunk in container.decode(audio=0)]
    sound = np.concatenate(chunks, 1)
    scale = np.iinfo(sound.dtype).max if sound.dtype.kind == "i" else 1
    return sound.mean(0) / scale, rate_hz


def on_timeline(prompt: dict, sounds: Sequence[np.ndarray], rate_hz: int) -> np.ndarray:
    """The voices as a workflow arranges them: at once, in turn, or as clips with pauses."""
    audio = inputs_of(prompt, "MultiTalkEncodeAudio")
    if "dialogue" not in audio:
        return np.concatenate(sounds) if audio["multi_audio_type"] == "add" else sounds[0]
    clips = (sounds[0], sounds[1], sounds[0])
    speech = np.zeros(round(sum(map(len, clips)) + 0.1 * rate_hz))  # a pause of 0.3 s, an interruption of 0.2 s
    for clip, start in zip(clips, (0, len(clips[0]) + round(0.3 * rate_hz), len(speech) - len(clips[2])), strict=True):
        speech[start : start + len(clip)] += clip
    return speech


def test_the_start_has_no_message_of_ours(server):
    start = itertools.takewhile(lambda line: "To see the GUI" not in line, server.log)
    ours = [line for line in start if "multitalk" in line.lower()]
    assert len(ours) == 1 and "seconds:" in ours[0] and "FAILED" not in ours[0], ours


def test_the_workflows_are_listed_as_templates_with_their_pictures(server):
    templates = server.call("/workflow_templates")[1]["comfyui-multitalk"]
    assert sorted(templates) == sorted(path.stem for path in API.parent.glob("*.json"))
    for name in map(quote, templates):
        for ending in ("json", "jpg"):
            assert server.call(f"/api/workflow_templates/comfyui-multitalk/{name}.{ending}")[0] == 200


def test_the_blueprints_are_listed(server):
    names = {entry["name"] for entry in server.call("/global_subgraphs")[1].values()}
    assert names >= {path.stem for path in (pack.PACK / "subgraphs").glob("*.json")}


def test_an_example_is_heard_without_a_copy_in_the_input_folder(server):
    prompt = {"1": {"class_type": "MultiTalkLoadAudio", "inputs": {"audio": "multitalk_speech.wav [temp]"}},
              "2": {"class_type": "PreviewAudio", "inputs": {"audio": ["1", 0]}}}  # fmt: skip
    assert server.wait(server.queue(prompt), VIDEO_S)["status"]["status_str"] == "success"


def test_every_node_has_a_help_page_in_the_place_where_the_page_looks(server):
    nodes = [name for name in server.call("/object_info")[1] if name.startswith("MultiTalk")]
    assert nodes
    for name in nodes:
        for language in ("en", "zh"):
            status, text = server.call(f"/extensions/comfyui-multitalk/docs/{name}/{language}.md")
            assert status == 200 and text.startswith("# ")


@pytest.mark.parametrize("name", LOCAL)
def test_a_workflow_runs_as_it_is_shipped(name, server):
    prompt = workflow(name, num_frames=13, seed=1)
    pictures = frames(video(server, server.wait(server.queue(prompt), VIDEO_S)))
    assert pictures.shape == (13, 64, 64, 3)


@pytest.mark.parametrize("name", LOCAL)
def test_a_workflow_runs_to_a_video_with_the_sound_in_step(name, server):
    prompt = with_own_files(workflow(name, num_frames=0, seed=1))
    path = video(server, server.wait(server.queue(prompt), VIDEO_S))
    voices = [entry["inputs"]["audio"] for entry in prompt.values() if entry["class_type"] == "MultiTalkLoadAudio"]
    sounds, speech_rate_hz = zip(*(mono(server.base / "input" / voice) for voice in voices), strict=True)
    speech, speech_rate_hz = on_timeline(prompt, sounds, speech_rate_hz[0]), speech_rate_hz[0]
    pictures = frames(path)
    assert pictures.shape == (round(len(speech) / speech_rate_hz * 25), 64, 64, 3)
    soundtrack, rate_hz = mono(path)
    speech_levels, levels = (
        loudness(*sound, len(pictures)) for sound in ((speech, speech_rate_hz), (soundtrack, rate_hz))
    )
    in_step = np.corrcoef(speech_levels, levels)[0, 1]
    assert in_step > 0.95 and in_step > np.corrcoef(speech_levels[1:], levels[:-1])[0, 1]
    assert in_step > np.corrcoef(speech_levels[:-1], levels[1:])[0, 1]


def test_a_new_seed_runs_only_the_sampler_and_the_saving_again(server):
    prompt = workflow(QUALITY, seed=2)
    server.wait(server.queue(prompt), VIDEO_S)
    inputs_of(prompt, "MultiTalkSampler")["seed"] = 3
    cached = messages(server.wait(server.queue(prompt), VIDEO_S))["execution_cached"]["nodes"]
    kinds = {entry["class_type"] for number, entry in prompt.items() if number not in cached}
    assert kinds == {"MultiTalkSampler", "SaveVideo"}


def test_pictures_arrive_while_it_samples(server, events):
    prompt = workflow(QUALITY, seed=4, steps=3)
    server.wait(server.queue(prompt), VIDEO_S)
    *steps, window = (Image.open(io.BytesIO(event.data)) for event in events.of("preview"))
    assert [(step.format, step.size) for step in steps] == 3 * [("JPEG", (512, 512))]
    assert (window.format, window.size) == ("WEBP", (64, 64)) and window.n_frames > 1  # its frames, moving
    sampler = next(number for number, entry in prompt.items() if entry["class_type"] == "MultiTalkSampler")
    of_sampler = [event.data for event in events.of("progress") if event.data["node"] == sampler]
    fractions = [data["value"] / data["max"] for data in of_sampler]
    assert fractions == sorted(fractions) and fractions[-1] == 1


def test_cancel_ends_within_a_forward_and_the_next_run_is_unharmed(server, events):
    prompt = workflow(QUALITY, seed=5, steps=4)
    whole = frames(video(server, server.wait(server.queue(prompt), VIDEO_S)))
    server.call("/free", {"unload_models": True, "free_memory": True})
    time.sleep(1)  # the server forgets what it has cached when it next looks
    inputs_of(prompt, "MultiTalkSampler")["steps"] = 200
    events.all.clear()
    long = server.queue(prompt)
    events.wait(lambda event: event.kind == "preview")
    server.interrupt()
    num_steps = len(events.of("preview"))
    events.wait(lambda event: event.kind == "execution_interrupted")
    assert len(events.of("preview")) <= num_steps + 1
    assert "execution_interrupted" in messages(server.wait(long))
    inputs_of(prompt, "MultiTalkSampler")["steps"] = 4
    again = frames(video(server, server.wait(server.queue(prompt), VIDEO_S)))
    assert np.array_equal(whole, again)


def rank_ids(server) -> set[int]:
    """The server's processes that sample on devices of their own."""
    ids = set()
    for process in psutil.Process(server.process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            ids |= {process.pid} if process.cmdline()[2:4] == ["-m", "pipeline.parallel.worker"] else set()
    return ids


def test_several_devices_make_the_frames_of_one_stay_warm_and_leave_with_the_cache(server):
    prompt = workflow(QUALITY, seed=7)
    alone = frames(video(server, server.wait(server.queue(prompt), VIDEO_S)))
    prompt["devices"] = {"class_type": "MultiTalkDevices", "inputs": {"devices": "cpu,cpu", "split": "tokens"}}
    inputs_of(prompt, "MultiTalkSampler")["options"] = ["devices", 0]
    together = frames(video(server, server.wait(server.queue(prompt), VIDEO_S)))
    assert np.abs(together.astype(int) - alone).max() <= CODED_LEVELS
    ids = rank_ids(server)
    inputs_of(prompt, "MultiTalkSampler")["seed"] = 8
    video(server, server.wait(server.queue(prompt), VIDEO_S))
    assert len(ids) == 2 and rank_ids(server) == ids
    server.call("/free", {"unload_models": True, "free_memory": True})
    end_s = time.monotonic() + VIDEO_S
    while rank_ids(server):
        assert time.monotonic() < end_s, "the processes did not end with the cache"
        time.sleep(0.2)


@pytest.mark.parametrize(
    ("kind", "wrong", "sentence"),
    [
        ("MultiTalkEncodeAudio", {"start_times": "soon"}, "start_times must be seconds"),
        ("MultiTalkLoadModel", {"adapter": "none"}, "audio"),
    ],
)
def test_a_wrong_input_is_answered_by_one_plain_sentence(kind, wrong, sentence, server):
    prompt = workflow(QUALITY, seed=6)
    inputs_of(prompt, kind).update(wrong)
    error = messages(server.wait(server.queue(prompt), VIDEO_S))["execution_error"]
    text = error["exception_message"].strip()
    assert sentence in text and "\n" not in text and text.endswith("."), text


def test_a_value_out_of_range_is_refused_before_anything_runs(server):
    status, answer = server.call("/prompt", {"prompt": workflow(QUALITY, steps=-1)})
    assert status == 400
    errors = [error["type"] for node in answer["node_errors"].values() for error in node["errors"]]
    assert errors == ["value_smaller_than_min"]


def test_a_value_in_a_sockets_place_is_refused_before_anything_runs(server):
    status, answer = server.call("/prompt", {"prompt": workflow(QUALITY, audio_embeds=5)})
    assert status == 400
    errors = [error["details"] for node in answer["node_errors"].values() for error in node["errors"]]
    assert any("audio_embeds takes a link to a node's output" in details for details in errors), errors


def test_what_the_remote_node_misses_is_said_first_in_its_error(server):
    prompt = json.loads((API / "remote.json").read_text())
    inputs_of(prompt, "MultiTalkFal")["prompt"] = " "  # refused where there is a key too
    error = messages(server.wait(server.queue(prompt), VIDEO_S))["execution_error"]
    assert error["node_type"] == "MultiTalkFal"
    assert error["exception_message"].startswith(("No key for fal was found.", "The prompt is empty."))
    assert error["exception_type"].startswith("MultiTalk.")
