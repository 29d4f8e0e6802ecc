"""ComfyUI's page in a browser: apps run by clicks alone, blueprints are found and run, boxes decide who talks."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from support import pack
from support.comfy_server import NEEDS_COMFYUI, ComfyServer

sys.path.append(str(pack.PACK / "tools"))
import make_workflows
import workflow_graph

WORKFLOWS = pack.PACK / "workflows"
APPS = sorted(WORKFLOWS.glob("*.app.json"))
BLUEPRINTS = {"Talking Video (MultiTalk)": 1, "Two People Talking (MultiTalk)": 2}  # voices
LOADERS = {  # node and widget of each file
    ("MultiTalkLoadModel", "base"): "base",
    ("MultiTalkLoadModel", "adapter"): "adapter",
    ("MultiTalkLoadVAE", "file"): "vae",
    ("MultiTalkLoadTextEncoder", "file"): "text",
    ("MultiTalkLoadImageEncoder", "file"): "image",
    ("MultiTalkLoadAudioEncoder", "file"): "audio",
}
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
pytestmark = [
    *NEEDS_COMFYUI,
    pytest.mark.skipif(
        "NODE_PATH" not in os.environ or not shutil.which("node") or not Path(CHROMIUM).exists(),
        reason="NODE_PATH names no folder with playwright-core, or there is no node or no Chromium",
    ),
]
RUN_S = 900  # a short video of the bundled model on a busy machine
MOUTHS = {"left": (slice(74, 92), slice(40, 64)), "right": (slice(74, 92), slice(127, 161))}  # of the picture of two
QUIET = 0.2  # of the speaker's mouth motion
STYLES = {"classic": False, "Nodes 2.0": True}  # of the page, by its setting


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A ComfyUI without any models, with its page."""
    base = tmp_path_factory.mktemp("comfyui")
    (base / "custom_nodes").mkdir()
    (base / "custom_nodes" / "comfyui-multitalk").symlink_to(pack.PACK, target_is_directory=True)
    environ = {name: value for name, value in os.environ.items() if not name.upper().endswith("_PROXY")}
    server = ComfyServer(base, environ | {"HF_HUB_OFFLINE": "1"}, has_page=True)
    yield server
    server.close()


def browse(server, folder, *steps):
    """Takes the steps on the page."""
    job = {
        "url": f"http://127.0.0.1:{server.port}/", "shots": str(folder), "steps": [["goto"], *steps],
        "patience_ms": 240_000, "pause_ms": 4_000, "look_ms": 10_000, "run_ms": RUN_S * 1000,
    }  # fmt: skip
    file = folder / "job.json"
    file.write_text(json.dumps(job))
    command = ["node", Path(__file__).parent / "browser" / "page.mjs", file]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=2 * RUN_S)
    report = json.loads(answer.stdout.splitlines()[-1])
    assert "failure" not in report, (report, answer.stderr)


def with_bundled(page, size, num_frames=13):
    """A workflow of the page with the bundled files chosen in its loaders, at a small size."""
    choices = {
        ("MultiTalkCondition", "resolution"): "custom", ("MultiTalkCondition", "width"): size[0],
        ("MultiTalkCondition", "height"): size[1], ("MultiTalkEncodeAudio", "num_frames"): num_frames,
        **{loader: make_workflows.SMALL[part] for loader, part in LOADERS.items()},
    }  # fmt: skip
    for node in page["nodes"]:
        if node["type"] in workflow_graph.OURS:
            for place, widget in enumerate(workflow_graph.widgets_of(node["type"])):
                values = node["widgets_values"]
                values[place] = choices.get((node["type"], widget["id"]), values[place])
            node["properties"].pop("models", None)
    return page


def newest_video(server):
    """Frames `f h w c` of the last video that Save Video wrote, grey levels."""
    path = max(Path(server.base, "output").rglob("*.mp4"), key=lambda file: file.stat().st_mtime)
    with av.open(path) as container:
        assert container.streams.audio
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]).astype(float)


def motion(frames, mouth):
    """Change of a mouth over time, in grey levels."""
    rows, columns = mouth
    return frames[:, rows, columns].std(0).mean()


@pytest.mark.parametrize("app", APPS, ids=lambda path: path.stem)
def test_an_app_runs_from_picture_to_video_by_clicks(app, server, tmp_path):
    two = "Two" in app.stem
    file = tmp_path / app.name
    file.write_text(json.dumps(with_bundled(json.loads(app.read_text()), (192, 128) if two else (128, 128))))
    browse(server, tmp_path, ["drop", str(file)], ["shot", "form"], ["run", "running"], ["shot", "video"])
    assert newest_video(server).shape == (13, 128, 192 if two else 128, 3)


@pytest.mark.parametrize("name", BLUEPRINTS)
def test_a_blueprint_is_found_by_searching_talking_and_runs(name, server, tmp_path):
    connect = """() => {
      const graph = window.app.graph, blueprint = graph._nodes[0];
      blueprint.pos = [100, 0];
      const add = (type, x, y) => {
        const node = window.LiteGraph.createNode(type); node.pos = [x, y]; graph.add(node); return node; };
      const set = (node, name, value) => { node.widgets.find(widget => widget.name === name).value = value; };
      const picture = add('MultiTalkLoadImage', -400, 0), video = add('SaveVideo', 700, 0);
      set(picture, 'image', 'multitalk_drawn_two.png [temp]');
      picture.connect(0, blueprint, 'image'); blueprint.connect(0, video, 'video');
      ['drawn_speech', 'drawn_answer'].slice(0, VOICES).forEach((voice, index) => {
        const sound = add('MultiTalkLoadAudio', -400, 400 + 200 * index);
        set(sound, 'audio', `multitalk_${voice}.wav [temp]`); sound.connect(0, blueprint, `audio_${index + 1}`); });
      for (const widget of blueprint.widgets) if (widget.name in FILES) widget.value = FILES[widget.name];
      const inner = type => blueprint.subgraph.nodes.find(node => node.type === type);
      set(inner('MultiTalkCondition'), 'resolution', 'custom'); set(inner('MultiTalkCondition'), 'width', 192);
      set(inner('MultiTalkCondition'), 'height', 128); set(inner('MultiTalkEncodeAudio'), 'num_frames', 13);
      window.app.canvas.deselectAll();
    }"""
    sockets = {"base": "base", "adapter": "adapter", "vae": "vae", "text": "text_encoder", "image": "image_encoder",
               "audio": "audio_encoder"}  # fmt: skip
    files = {sockets[part]: file for part, file in make_workflows.SMALL.items()}
    connect = connect.replace("VOICES", str(BLUEPRINTS[name])).replace("FILES", json.dumps(files))
    clear = "() => window.app.graph.clear()"
    browse(
        server, tmp_path, ["evaluate", clear], ["search", "talking", name], ["evaluate", connect],
        ["command", "Comfy.Canvas.FitView"], ["shot", "connected"], ["run", "running"], ["shot", "video"],
    )  # fmt: skip
    assert newest_video(server).shape == (13, 128, 192, 3)


def write_graph(file, size, num_frames, arrangement=None, options=None, **audio):
    """Writes a page's graph of the bundled model and two people; numbers of its nodes by their kinds."""
    graph = workflow_graph.Graph(file.stem, f"# {file.stem}")
    sampler = {"options": (graph.add("MultiTalkLongVideoOptions", **options), 0)} if options else {}
    picture, voice = map(make_workflows.example, ("drawn_two.png", "drawn_speech.wav"))
    make_workflows.talk(
        graph, make_workflows.SMALL, picture, [voice], "two people talk", sampler=sampler, audio=audio,
        arrangement=arrangement,
    )  # fmt: skip
    file.write_text(json.dumps(with_bundled(graph.page(), size, num_frames)))
    return {kind: number for number, (kind, _) in graph.nodes.items()}


def by_mouse(graph, picture, sounds):
    """The places are those that the mouse draws."""
    speakers = {"speakers": (graph.add("MultiTalkSpeakers", background=picture, width=192, height=128, **sounds), 0)}
    return speakers, speakers


@pytest.mark.parametrize("side", MOUTHS)
def test_a_box_that_the_mouse_draws_decides_who_talks(side, server, tmp_path):
    file = tmp_path / "Boxes.json"
    number = write_graph(file, (192, 128), 41, by_mouse)["MultiTalkSpeakers"]
    corners = (0.02, 0.05, 0.47, 0.95) if side == "left" else (0.53, 0.05, 0.98, 0.95)
    browse(
        server, tmp_path, ["setting", "Comfy.VueNodes.Enabled", True], ["drop", str(file)], ["zoom", number],
        ["box", number, *corners], ["shot", "boxes"], ["run", "running"], ["shot", "video"],
    )  # fmt: skip
    frames = newest_video(server)
    talking = motion(frames, MOUTHS[side])
    listening = motion(frames, MOUTHS["right" if side == "left" else "left"])
    assert talking > 1 and listening < QUIET * talking, (talking, listening)


@pytest.mark.parametrize("style", STYLES)
def test_a_node_says_on_its_face_what_is_wrong_how_far_it_is_and_what_came_of_it(style, server, tmp_path):
    wrong, long, short = (tmp_path / f"{name}.json" for name in ("wrong", "long", "short"))
    audio = write_graph(wrong, (64, 64), 9, start_times="soon")["MultiTalkEncodeAudio"]
    sampler = write_graph(long, (64, 64), 60, options={"window_frames": 17, "motion_frames": 5})["MultiTalkSampler"]
    last = write_graph(short, (64, 64), 9)["MultiTalkSampler"]
    browse(
        server, tmp_path, ["setting", "Comfy.VueNodes.Enabled", STYLES[style]],
        ["drop", str(wrong)], ["zoom", audio], ["run", "wrong", "execution_error"], ["shot", "refusal"],
        ["says", "start_times must be seconds"],
        ["drop", str(long)], ["zoom", sampler], ["run", "long", "execution_interrupted", "window 3 of 5"],
        ["shot", "cancelled"], ["says", "cancelled; 2 of 5 windows kept"],
        ["drop", str(short)], ["zoom", last], ["run", "short"], ["shot", "facts"], ["says", "9 frames (0.4 s) in "],
    )  # fmt: skip
    assert not list(Path(server.base, "input").glob("multitalk*"))


def test_every_word_that_people_search_for_finds_a_local_node_first(server, tmp_path):
    words = ("talking", "lip sync", "avatar", "speech", "portrait", "dub", "talking head")
    steps = [step for word in words for step in (["search", word], ["says", "MultiTalk Sampler"], ["key", "Escape"])]
    browse(server, tmp_path, ["evaluate", "() => window.app.graph.clear()"], *steps)


def test_our_load_audio_plays_what_is_chosen(server, tmp_path):
    look = """() => {
      const node = window.LiteGraph.createNode('MultiTalkLoadAudio');
      window.app.graph.add(node);
      const names = node.widgets.map(widget => widget.name).join();
      if (names !== 'audio,audioUI,upload') throw new Error(names);
      const [list, player] = node.widgets;
      list.value = 'multitalk_speech.wav [temp]';
      list.callback(list.value);
      if (!decodeURIComponent(player.element.src).includes('multitalk_speech.wav')) throw new Error(player.element.src);
    }"""
    browse(server, tmp_path, ["evaluate", "() => window.app.graph.clear()"], ["evaluate", look], ["shot", "player"])
