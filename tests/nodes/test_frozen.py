"""People's workflows hold node ids, input ids, types and defaults: a change of these is a decision."""

import inspect
import json
import subprocess
import sys

import pytest
from support import pack

WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "BOUNDING_BOXES")


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return pack.node_classes(pack.load(folder, folder))


def test_nothing_that_workflows_depend_on_has_changed(nodes):
    frozen = json.loads((pack.PACK / "tests" / "frozen_nodes.json").read_text())
    now = json.loads(json.dumps({name: pack.describe(node) for name, node in nodes.items()}))
    assert now == frozen, "if this change is meant, run: python tools/freeze_nodes.py"


def test_every_node_is_ours_by_name_and_says_what_every_input_is(nodes):
    for name, node in nodes.items():
        schema = node.GET_SCHEMA()
        assert name.startswith("MultiTalk") and schema.category.startswith("MultiTalk") and schema.description
        for socket in schema.inputs:
            assert socket.options.get("tooltip"), f"{name}.{socket.id} has no tooltip"


def test_a_value_in_a_sockets_place_is_refused_before_anything_runs(nodes):
    sockets = [
        (node, socket.id)
        for name, node in nodes.items()
        for socket in node.GET_SCHEMA().inputs
        if socket.io_type not in WIDGET_TYPES
    ]
    assert len(sockets) > 30
    for node, name in sockets:
        assert name in inspect.signature(node.validate_inputs).parameters  # else ComfyUI does not hand it over
        for value in (5, "portrait.png", [], {}, False):
            refusal = node.validate_inputs(**{name: value})
            assert refusal.startswith(f"{name} takes a link to a node's output") and repr(value) in refusal


def test_links_and_absent_sockets_are_no_mistake(nodes):
    """A link has no value yet when ComfyUI asks, and null is nothing."""
    assert nodes["MultiTalkSampler"].validate_inputs() is True
    assert nodes["MultiTalkSampler"].validate_inputs(options=None) is True


def test_no_node_has_the_id_of_another_pack(nodes):
    theirs = {
        "MultiTalkModelLoader",
        "MultiTalkWav2VecEmbeds",
        "MultiTalkSilentEmbeds",
        "WanVideoImageToVideoMultiTalk",
    }
    assert not theirs & set(nodes)


IMPORT = """
import sys, torch; sys.path.insert(0, {tests!r})
from pathlib import Path
from support import pack
nodes = pack.node_classes(pack.load(Path({folder!r}), Path({folder!r})))
heavy = [name for name in ("diffusers", "transformers", "librosa", "gguf", "fal_client") if name in sys.modules]
print(len(nodes), heavy, torch.cuda.is_initialized())
"""


def test_importing_the_pack_loads_no_heavy_library_and_touches_no_gpu(tmp_path):
    script = IMPORT.format(tests=str(pack.PACK / "tests"), folder=str(tmp_path))
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert result.stdout.split(" ", 1)[1].strip() == "[] False", result.stdout
