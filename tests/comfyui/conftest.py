"""A real ComfyUI with the pack in its custom_nodes, tiny models and tiny inputs, for all tests of this folder."""

import os
from pathlib import Path

import pytest
from support import pack
from support.comfy_events import Events
from support.comfy_server import ComfyServer
from support.workflow_files import write_inputs, write_models


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """The server; two seconds of each voice lie in its input folder. Core's encoders compute as exactly as ours."""
    base = tmp_path_factory.mktemp("comfyui")
    for name in ("custom_nodes", "input", "models"):
        (base / name).mkdir()
    (base / "custom_nodes" / "comfyui-multitalk").symlink_to(pack.PACK, target_is_directory=True)
    (base / "custom_nodes" / "tiny-parts").symlink_to(Path(__file__).parent / "parts", target_is_directory=True)
    write_models(base / "models")
    (base / "models" / "detection").mkdir()
    (base / "models" / "detection" / "mediapipe_face_fp32.safetensors").touch()  # in its list; nothing runs it
    write_inputs(base / "input", duration_s=2.0)
    environ = {name: value for name, value in os.environ.items() if not name.upper().endswith("_PROXY")}
    server = ComfyServer(base, environ | {"HF_HUB_OFFLINE": "1"}, "--fp32-text-enc")
    yield server
    server.close()


@pytest.fixture
def events(server):
    """Messages of the server during this test."""
    events = Events(server.port)
    yield events
    events.close()
