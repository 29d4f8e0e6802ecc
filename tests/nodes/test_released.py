"""Workflows of every release so far load: what people have saved goes on working."""

import json
import sys

import pytest
from support import pack
from support.workflow_files import write_models
from support.workflow_runner import check

sys.path.append(str(pack.PACK / "tools"))
import workflow_graph

RELEASED = pack.PACK / "tests" / "released"
QUEUED = sorted(RELEASED.glob("*/api/*.json"))
GRAPHS = sorted(RELEASED.glob("*/page/*.json"))
BLUEPRINTS = sorted(RELEASED.glob("*/subgraphs/*.json"))


def name(path):
    return f"{path.parts[-3]} {path.stem}"


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    models, work = tmp_path_factory.mktemp("models"), tmp_path_factory.mktemp("work")
    nodes = pack.node_classes(pack.load(models, work))
    write_models(models)
    return nodes


def page_nodes(graph):
    """Our nodes of a graph or a blueprint, with the names that their widgets have today by their places."""
    for part in (graph, *graph.get("definitions", {}).get("subgraphs", ())):
        for node in part["nodes"]:
            if node["type"].startswith("MultiTalk"):
                yield node, dict(zip(workflow_graph.names_on_page(node["type"]), node["widgets_values"], strict=False))


def test_this_version_is_among_them():
    assert (RELEASED / workflow_graph.VERSION).is_dir(), "run: python tools/freeze_release.py"


@pytest.mark.parametrize("path", QUEUED, ids=name)
def test_a_queued_workflow_is_taken(path, nodes):
    check(json.loads(path.read_text()), nodes)


@pytest.mark.parametrize("path", GRAPHS, ids=name)
def test_a_saved_graph_has_every_value_in_its_place(path):
    """The page keeps values by their places alone, so that a widget that is put between others moves them."""
    queued = json.loads((path.parents[1] / "api" / path.name).read_text())
    for node, values in page_nodes(json.loads(path.read_text())):
        then = queued[str(node["id"])]["inputs"]
        assert values.keys() - {None} == then.keys() & values.keys(), node["type"]
        for widget in values.keys() & then.keys():
            assert workflow_graph.queue_value(values[widget]) == then[widget], f"{node['type']}.{widget}"


@pytest.mark.parametrize("path", [*GRAPHS, *BLUEPRINTS], ids=name)
def test_sockets_have_their_names_types_and_places(path):
    for node, _ in page_nodes(json.loads(path.read_text())):
        inputs = dict(workflow_graph.sockets_of(node["type"])) | {
            widget["id"]: widget["type"] for widget in workflow_graph.widgets_of(node["type"])
        }
        assert all(inputs.get(socket["name"]) == socket["type"] for socket in node["inputs"]), node["type"]
        outputs = [(output["type"], output["name"]) for output in node["outputs"]]
        assert workflow_graph.outputs_of(node["type"])[: len(outputs)] == outputs, node["type"]
