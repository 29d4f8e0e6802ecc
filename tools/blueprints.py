"""A workflow as one node: what the page offers in its library and its search (a subgraph blueprint)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from workflow_graph import OURS, Graph, Link, sockets_of, widgets_of

MEDIA = ("MultiTalkLoadImage", "MultiTalkLoadAudio")  # stay outside
ENTRY, EXIT = -10, -20  # numbers of a subgraph's own ends
WIDGETS = (  # on the node's face: kind of the node inside, its widget, the name outside
    ("MultiTalkCondition", "prompt", "prompt"),
    ("MultiTalkSampler", "seed", "seed"),
    ("MultiTalkLoadModel", "base", "base"),
    ("MultiTalkLoadModel", "adapter", "adapter"),
    ("MultiTalkLoadVAE", "file", "vae"),
    ("MultiTalkLoadTextEncoder", "file", "text_encoder"),
    ("MultiTalkLoadImageEncoder", "file", "image_encoder"),
    ("MultiTalkLoadAudioEncoder", "file", "audio_encoder"),
)


@dataclass
class Port:
    """An input of a blueprint.

    Attributes:
        name: on its face.
        io_type: of what it takes.
        targets: numbers of nodes inside, and the names of their inputs.
        value: a widget's; None for a socket.
    """

    name: str
    io_type: str
    targets: list[tuple[str, str]] = field(default_factory=list)
    value: Any = None


def blueprint(name: str, graph: Graph) -> dict[str, Any]:
    """The page's form of a blueprint: our nodes of `graph` inside; pictures, voices and the video are its sockets."""
    inside = [number for number, (kind, _) in graph.nodes.items() if kind in OURS and kind not in MEDIA]
    ports = _ports(graph, inside)
    linked_widgets = {
        number: [target for port in ports for node, target in port.targets if node == number and port.value is not None]
        for number in inside
    }
    links = _links(graph, inside, ports, linked_widgets)
    places, _ = graph.layout()
    subgraph = {
        "id": str(uuid5(NAMESPACE_URL, name)),
        "version": 1,
        "state": {"lastGroupId": 0, "lastNodeId": len(graph.nodes), "lastLinkId": len(links), "lastRerouteId": 0},
        "revision": 0,
        "config": {},
        "name": name,
        "inputNode": {"id": ENTRY, "bounding": [-200, 0, 140, 40 + 20 * len(ports)]},
        "outputNode": {"id": EXIT, "bounding": [2600, 0, 120, 60]},
        "inputs": [
            _end(name, port, [link.number for link in links if (link.source, link.source_slot) == (ENTRY, slot)])
            for slot, port in enumerate(ports)
        ],
        "outputs": [_end(name, Port("video", "VIDEO"), [link.number for link in links if link.target == EXIT])],
        "widgets": [],
        "nodes": [graph.page_node(number, places[number], links, linked_widgets[number]) for number in inside],
        "groups": [],
        "links": [_link(link) for link in links],
        "extra": {},
        "category": "MultiTalk",
        "description": graph.note.partition("\n")[0].removeprefix("# "),
    }
    return {
        "revision": 0,
        "last_node_id": 1,
        "last_link_id": 0,
        "nodes": [_outside(name, subgraph["id"], ports)],
        "links": [],
        "version": 0.4,
        "definitions": {"subgraphs": [subgraph]},
        "extra": {},
    }


def _ports(graph: Graph, inside: list[str]) -> list[Port]:
    """A socket for each input that comes from outside, and the widgets of the face."""
    ports: dict[str, Port] = {}
    for number in inside:
        kind, inputs = graph.nodes[number]
        for name, io_type in sockets_of(kind):
            if name in inputs and inputs[name][0] not in inside:
                ports.setdefault(name, Port(name, io_type)).targets.append((number, name))
    for kind, widget, name in WIDGETS:
        (number,) = (number for number in inside if graph.nodes[number][0] == kind)
        (facts,) = (facts for facts in widgets_of(kind) if facts["id"] == widget)
        value = graph.nodes[number][1].get(widget, facts.get("default"))
        ports[name] = Port(name, facts["type"], [(number, widget)], value)
    return list(ports.values())


def _links(graph: Graph, inside: list[str], ports: list[Port], linked_widgets: dict[str, list[str]]) -> list[Link]:
    """The links between the nodes inside, and those to the subgraph's ends."""
    links = [link for link in graph.links() if {str(link.source), str(link.target)} <= set(inside)]
    (video,) = (inputs["video"] for kind, inputs in graph.nodes.values() if kind == "SaveVideo")
    ends = [(int(video[0]), video[1], EXIT, 0, "VIDEO")]
    for slot, port in enumerate(ports):
        for number, name in port.targets:
            names = [socket for socket, _ in sockets_of(graph.nodes[number][0])] + linked_widgets[number]
            ends.append((ENTRY, slot, int(number), names.index(name), port.io_type))
    first = max(link.number for link in links) + 1
    return links + [Link(number, *end) for number, end in enumerate(ends, start=first)]


def _end(blueprint_name: str, port: Port, links: list[int]) -> dict[str, Any]:
    """An input or the output of a subgraph."""
    number = str(uuid5(NAMESPACE_URL, f"{blueprint_name} {port.name}"))
    return {"id": number, "name": port.name, "type": port.io_type, "linkIds": links}


def _link(link: Link) -> dict[str, Any]:
    return {
        "id": link.number,
        "origin_id": link.source,
        "origin_slot": link.source_slot,
        "target_id": link.target,
        "target_slot": link.target_slot,
        "type": link.io_type,
    }


def _outside(name: str, subgraph: str, ports: list[Port]) -> dict[str, Any]:
    """The blueprint's node."""
    widgets = [port for port in ports if port.value is not None]
    return {
        "id": 1,
        "type": subgraph,
        "pos": [0, 0],
        "size": [420, 120 + 24 * len(ports)],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": [
            {"name": port.name, "type": port.io_type, "link": None}
            | ({} if port.value is None else {"widget": {"name": port.name}})
            for port in ports
        ],
        "outputs": [{"name": "video", "type": "VIDEO", "links": []}],
        "title": name,
        "properties": {
            "proxyWidgets": [["-1", port.name] for port in widgets],
            "cnr_id": "multitalk",
        },
        "widgets_values": [port.value for port in widgets],
    }
