"""Every shipped workflow, on the real node classes with tiny weights in the places of the real files."""

import json
import re
import sys
from pathlib import Path

import av
import pytest
from multitalk_pack.pipeline.config import Recipe
from multitalk_pack.pipeline.generation.recipes import find_recipe
from PIL import Image
from support import pack
from support.workflow_files import PICTURE, VOICE_S, inputs_of, small, with_own_files, write_inputs, write_models
from support.workflow_runner import Rejected, Runner, check

sys.path.append(str(pack.PACK / "tools"))
import make_workflows
import workflow_graph

PACK = pack.PACK
API = PACK / "workflows" / "api"
WORKFLOWS = sorted(API.glob("*.json"))
BLUEPRINTS = sorted((PACK / "subgraphs").glob("*.json"))
LOCAL = [path for path in WORKFLOWS if path.stem != "remote"]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    models, work = tmp_path_factory.mktemp("models"), tmp_path_factory.mktemp("work")
    module = pack.load(models, work)
    nodes = pack.node_classes(module)
    write_models(models)
    return nodes


@pytest.fixture(scope="module")
def runner(nodes):
    folder = Path(sys.modules["folder_paths"].get_input_directory())
    folder.mkdir()
    write_inputs(folder)
    return Runner(nodes, folder)


@pytest.mark.parametrize("path", LOCAL, ids=lambda path: path.stem)
def test_a_workflow_runs_to_a_video_with_sound(path, runner):
    prompt = with_own_files(small(json.loads(path.read_text()), num_frames=0))
    outputs = runner.run(prompt)
    sampler = next(n for n, entry in prompt.items() if entry["class_type"] == "MultiTalkSampler")
    frames, video, audio, fps = outputs[sampler]
    encode = inputs_of(prompt, "MultiTalkEncodeAudio")
    num_voices = sum(name.startswith("audio_") and name != "audio_encoder" for name in encode)
    speech_s = VOICE_S * (num_voices if encode["multi_audio_type"] == "add" else 1)
    if "dialogue" in encode:
        speech_s = 3.1 * VOICE_S  # three clips, a pause of 0.3 s and an interruption of 0.2 s
    with av.open(video.path) as container:
        pictures = list(container.decode(video=0))
        sound = container.streams.audio[0]
        assert float(sound.duration * sound.time_base) == pytest.approx(len(pictures) / 25, abs=0.04)
    assert fps == 25 and audio["sample_rate"] == 16000
    assert len(pictures) == round(25 * speech_s)
    if prompt[sampler]["inputs"]["keep_frames"]:
        assert frames.shape == (len(pictures), 64, 64, 3) and frames.min() >= 0 and frames.max() <= 1
    else:
        assert "keep_frames" in frames.message


def test_frames_of_encode_audio_cut_the_video(runner):
    prompt = small(json.loads((API / "single_speaker_quality.json").read_text()), num_frames=9)
    sampler = next(number for number, entry in prompt.items() if entry["class_type"] == "MultiTalkSampler")
    frames, _, audio, _ = runner.run(with_own_files(prompt))[sampler]
    assert (len(frames), audio["waveform"].shape[-1]) == (9, round(9 / 25 * 16000))


def test_the_sampler_shows_the_run_before_its_first_step_and_the_facts_after_the_last(runner):
    prompt = small(json.loads((API / "single_speaker_quality.json").read_text()), num_frames=9)
    sampler = next(number for number, entry in prompt.items() if entry["class_type"] == "MultiTalkSampler")
    inputs_of(prompt, "MultiTalkSampler")["seed"] = 1234
    server = sys.modules["server"].PromptServer.instance
    server.texts.clear()
    _, video, *_ = runner.run(prompt)[sampler]
    texts = [text for number, text in server.texts if number == sampler]
    headline, *_ = texts[0].splitlines()
    assert re.fullmatch(r"9 frames, 1 window, (about .*, )?\S+ GB of \S+ GB", headline) and len(headline) < 50
    assert "2 steps without a few-step LoRA" in texts[0] and all(text.startswith(headline) for text in texts[:-1])
    assert texts[-1].startswith("9 frames (0.4 s) in ") and video.path.rpartition("/")[2] in texts[-1]


def test_a_first_look_is_one_short_window_and_tells_what_the_long_run_will_take(nodes, tmp_path):
    prompt, runner = (
        small(json.loads((API / "long_speech.json").read_text())),
        Runner(nodes, tmp_path),
    )
    inputs_of(prompt, "MultiTalkSampler").update(steps=1, text_scale=1.0, audio_scale=1.0)
    inputs_of(prompt, "MultiTalkEncodeAudio")["num_frames"] = 300
    inputs_of(prompt, "MultiTalkLongVideoOptions")["first_look"] = True
    numbers = {entry["class_type"]: number for number, entry in prompt.items()}
    with av.open(runner.run(prompt)[numbers["MultiTalkSampler"]][1].path) as container:
        assert len(list(container.decode(video=0))) == 41
    inputs_of(prompt, "MultiTalkLongVideoOptions")["first_look"] = False
    report, can_run = Runner(nodes, tmp_path).run_node(prompt, numbers["MultiTalkPreflight"])
    assert can_run and "for 300 frames" in report and "time: about" in report, report


def test_the_small_workflow_leaves_every_choice_to_the_bundled_model():
    prompt = json.loads((API / "small_model.json").read_text())
    sampler, model = inputs_of(prompt, "MultiTalkSampler"), inputs_of(prompt, "MultiTalkLoadModel")
    assert (sampler["steps"], sampler["text_scale"], sampler["audio_scale"], sampler["shift"]) == (0, -1, -1, 0)
    assert "options" not in sampler and model["recipe"] == "auto"
    assert find_recipe(PACK / model["adapter"]) is Recipe.BUNDLED


def test_frames_video_and_sound_of_another_rate_are_equally_long(runner):
    prompt = small(json.loads((API / "single_speaker_quality.json").read_text()))
    with_own_files(prompt)
    inputs_of(prompt, "MultiTalkEncodeAudio").update(num_frames=9, fps=30.0)  # 0.36 s
    sampler = next(number for number, entry in prompt.items() if entry["class_type"] == "MultiTalkSampler")
    frames, video, audio, fps = runner.run(prompt)[sampler]
    with av.open(video.path) as container:
        num_pictures = len(list(container.decode(video=0)))
    assert (len(frames), num_pictures, fps, audio["waveform"].shape[-1]) == (11, 11, 30.0, round(11 / 30 * 16000))


def test_frames_that_the_published_plan_loses_are_missing_from_all_outputs(nodes, tmp_path):
    prompt, runner = (
        small(json.loads((API / "long_speech.json").read_text())),
        Runner(nodes, tmp_path),
    )
    inputs_of(prompt, "MultiTalkEncodeAudio").update(num_frames=22, fps=24.0)
    inputs_of(prompt, "MultiTalkSampler").update(steps=1, keep_frames=True)
    inputs_of(prompt, "MultiTalkLongVideoOptions").update(plan="published", window_frames=17, motion_frames=5)
    sampler = next(number for number, entry in prompt.items() if entry["class_type"] == "MultiTalkSampler")
    frames, video, *_ = runner.run(prompt)[sampler]
    with av.open(video.path) as container:
        num_pictures = len(list(container.decode(video=0)))
    assert 0 < len(frames) == num_pictures < 22


def test_flashtalk_goes_on_after_an_interruption_to_the_same_bytes(runner, monkeypatch):
    prompt = with_own_files(small(json.loads((API / "flashtalk.json").read_text()), num_frames=40))
    sampler = next(number for number, entry in prompt.items() if entry["class_type"] == "MultiTalkSampler")
    _, whole, *_ = runner.run_node(prompt, sampler)
    store = sys.modules[f"{pack.NAME}.pipeline.generation.store"].WindowStore
    save, saved = store.save, []

    def save_and_stop(self, index, *given):
        saved.append(index)
        finished = save(self, index, *given)
        if saved == [0]:
            raise KeyboardInterrupt
        return finished

    monkeypatch.setattr(store, "save", save_and_stop)
    del runner.cache[runner._key(sampler, prompt)]
    with pytest.raises(KeyboardInterrupt):
        runner.run_node(prompt, sampler)
    _, video, *_ = runner.run_node(prompt, sampler)
    assert saved == [0, 1], "two windows, each made once"
    assert Path(video.path).read_bytes() == Path(whole.path).read_bytes()


def test_a_new_seed_runs_only_the_sampler_again(runner):
    prompt = small(json.loads((API / "single_speaker_quality.json").read_text()))
    runner.run(prompt)
    inputs_of(prompt, "MultiTalkSampler")["seed"] += 1
    runner.run(prompt)
    assert runner.ran == ["MultiTalkSampler", "SaveVideo"]


def test_the_files_are_those_of_the_tool():
    graphs, folders = make_workflows.build(), {folder: PACK / folder for folder in ("workflows", "subgraphs")}
    pages = {f"{graph.stem}.json": graph.page() for graph in graphs.values()}
    api = {f"{name}.json": graph.api() for name, graph in graphs.items()}
    names = make_workflows.BLUEPRINTS.items()
    blueprints = {f"{name}.json": make_workflows.blueprint(name, graphs[graph]) for name, graph in names}
    for folder, files in ((folders["workflows"], pages), (API, api), (folders["subgraphs"], blueprints)):
        assert {path.name: json.loads(path.read_text()) for path in folder.glob("*.json")} == files


def test_every_workflow_has_a_square_picture_of_its_result():
    pictures = {path.stem: path for path in (PACK / "workflows").glob("*.jpg")}
    assert set(pictures) == {graph.stem for graph in make_workflows.build().values()}
    for path in pictures.values():
        with Image.open(path) as picture:
            assert picture.width == picture.height >= 256 and path.stat().st_size <= 400_000


def test_people_see_few_nodes_and_links():
    """An app shows none; by hand one speaker, without note and preflight, and two are as few as can be."""
    graphs = make_workflows.build()
    counts = {name: (len(graph.nodes), len(graph.links())) for name, graph in graphs.items()}
    assert counts["single_speaker_quality"] <= (11, 11) and counts["two_speakers"][0] <= 14


@pytest.mark.parametrize("graph", make_workflows.build().values(), ids=lambda graph: graph.name)
def test_an_app_shows_pictures_voices_prompt_and_seed_and_gives_the_video(graph):
    if not graph.is_app:
        pytest.skip("opens as a graph")
    page = graph.page()
    kinds = {str(node["id"]): node["type"] for node in page["nodes"]}
    form = page["extra"]["linearData"]
    widgets = [(kinds[number], widget) for number, widget in form["inputs"]]
    assert page["extra"]["linearMode"] and [kinds[number] for number in form["outputs"]] == ["SaveVideo"]
    assert widgets[-2:] == [("MultiTalkCondition", "prompt"), ("MultiTalkSampler", "seed")]
    media = {"MultiTalkLoadImage": "image", "MultiTalkLoadAudio": "audio"}
    assert set(widgets[:-2]) == set(media.items())
    assert len(widgets) == 2 + sum(kind in media for kind in kinds.values())


def unpacked(blueprint):
    """The graph inside a blueprint as the queue has it, between nodes of core that feed it and take its video."""
    (subgraph,), (outside,) = blueprint["definitions"]["subgraphs"], blueprint["nodes"]
    values = dict(
        zip([name for _, name in outside["properties"]["proxyWidgets"]], outside["widgets_values"], strict=True)
    )
    prompt = {}
    for port in subgraph["inputs"]:
        kind = {"IMAGE": ("LoadImage", "image", PICTURE), "AUDIO": ("LoadAudio", "audio", "speech.wav")}.get(
            port["type"]
        )
        if kind:
            prompt[port["name"]] = {"class_type": kind[0], "inputs": {kind[1]: kind[2]}}
            values[port["name"]] = [port["name"], 0]
    links = {link["id"]: link for link in subgraph["links"]}
    for node in subgraph["nodes"]:
        inputs = dict(zip(workflow_graph.names_on_page(node["type"]), node["widgets_values"], strict=True))
        inputs.pop(None, None)
        for socket in node["inputs"]:
            link = links.get(socket["link"])
            if link is not None:
                outer = subgraph["inputs"][link["origin_slot"]]["name"]
                linked = values[outer] if link["origin_id"] == -10 else [str(link["origin_id"]), link["origin_slot"]]
                inputs[socket["name"]] = linked
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    (video,) = (link for link in subgraph["links"] if link["target_id"] == -20)
    prompt["save"] = {"class_type": "SaveVideo", "inputs": {"video": [str(video["origin_id"]), video["origin_slot"]]}}
    return prompt


@pytest.mark.parametrize("path", BLUEPRINTS, ids=lambda path: path.stem)
def test_a_blueprint_runs_to_a_video_with_what_is_set_on_its_face(path, runner):
    blueprint = json.loads(path.read_text())
    (outside,) = blueprint["nodes"]
    seed = [name for _, name in outside["properties"]["proxyWidgets"]].index("seed")
    outside["widgets_values"][seed] = 7
    prompt = small(unpacked(blueprint))
    assert inputs_of(prompt, "MultiTalkSampler")["seed"] == 7
    (video,) = runner.run(prompt)["save"]
    with av.open(video.path) as container:
        assert len(list(container.decode(video=0))) == 9


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_the_page_and_the_queue_show_the_same_graph(path, nodes):
    api = json.loads(path.read_text())
    page = make_workflows.build()[path.stem].page()
    check(api, nodes)
    kinds = {str(node["id"]): node for node in page["nodes"] if node["type"] != "MarkdownNote"}
    assert {number: node["type"] for number, node in kinds.items()} == {n: e["class_type"] for n, e in api.items()}
    links = {link[0]: link for link in page["links"]}
    for number, entry in api.items():
        linked = {
            socket["name"]: [str(links[socket["link"]][1]), links[socket["link"]][2]]
            for socket in kinds[number]["inputs"]
            if socket["link"] is not None
        }
        assert linked == {name: value for name, value in entry["inputs"].items() if isinstance(value, list) and value}
        properties = kinds[number]["properties"]
        assert properties["Node name for S&R"] == entry["class_type"] and properties["cnr_id"] and properties["ver"]
        for model in properties.get("models", []):
            assert model["name"] in kinds[number]["widgets_values"] and model["url"].endswith(model["name"])


def test_a_wrong_value_is_rejected_before_it_runs(nodes):
    prompt = small(json.loads((API / "single_speaker_quality.json").read_text()))
    inputs_of(prompt, "MultiTalkSampler")["steps"] = -1
    with pytest.raises(Rejected, match="steps"):
        check(prompt, nodes)
