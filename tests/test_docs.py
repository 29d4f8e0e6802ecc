"""The pages say what the program is: generated parts, help for every input, messages, links."""

import ast
import importlib.util
import json
import re
from urllib.parse import unquote

import pytest
from support.pack import PACK


def load_tool():
    spec = importlib.util.spec_from_file_location("make_docs", PACK / "tools" / "make_docs.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


tool = load_tool()
HEADINGS = {"en": ("Example", "Inputs", "Common mistakes"), "zh": ("示例", "输入", "常见错误")}
TROUBLESHOOTING = (PACK / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
PAGES = [PACK / "README.md", *sorted((PACK / "docs").glob("*.md"))]


@pytest.fixture(scope="module")
def nodes():
    return tool.node_classes()


def help_page(name, locale):
    return (PACK / "web" / "docs" / name / f"{locale}.md").read_text(encoding="utf-8")


def test_generated_parts_are_up_to_date(nodes):
    stale = [str(path) for path, text in tool.pages(nodes).items() if path.read_text(encoding="utf-8") != text]
    assert not stale, "run: python tools/make_docs.py"


def test_translations_were_made_from_todays_tooltips(nodes):
    assert tool.changed_tooltips(nodes, tool.words()) == []


@pytest.mark.parametrize("locale", HEADINGS)
def test_every_input_and_output_is_explained_on_its_nodes_help_page(nodes, locale):
    for name, node in nodes.items():
        page, schema = help_page(name, locale), node.GET_SCHEMA()
        assert page.startswith(f"# {schema.display_name}\n"), name
        assert all(f"\n## {heading}\n" in page for heading in HEADINGS[locale]), name
        items = dict(re.findall(r"(?m)^- `(\w+)`: (.*)", page))
        names = [socket.id for socket in schema.inputs]
        names += [socket.options["display_name"] for socket in schema.outputs]
        assert [each for each in names if not items.get(each, "").strip()] == [], f"{name}, {locale}"


def test_there_is_no_help_for_nodes_that_are_gone(nodes):
    assert {folder.name for folder in (PACK / "web" / "docs").iterdir()} == set(nodes)


def test_every_file_that_a_workflow_names_is_described():
    about = json.loads((PACK / "docs" / "files.json").read_text(encoding="utf-8"))
    assert set(about) == set(tool.tables.make_workflows.MODELS)


SOURCES = [*(PACK / "pipeline").rglob("*.py"), *(PACK / "nodes").glob("*.py")]
NODES = [node for path in SOURCES for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
KEYS = re.findall(r"(?m)^### `(.*)`$", TROUBLESHOOTING) + re.findall(r"(?m)^\| `(.*?)` \|", TROUBLESHOOTING)
TELLING = ("problem", "note", "warning", "ExecutionBlocker")  # beside errors: what problems, log and graph are told


def text_of(node):
    """A string of the program with a mark for each part that differs; None for what is no string."""
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"%[.\d]*[sdfg]", "…", node.value).replace("%%", "%")
    return None


DOCSTRINGS = {id(node.value) for node in NODES if isinstance(node, ast.Expr)}
STRINGS = [text for node in NODES if id(node) not in DOCSTRINGS and (text := text_of(node)) is not None]


def messages():
    """Messages to people: errors, problems, notes, warnings, refused inputs, as far as they have words of their own."""
    errors = {"MultiTalkError"}
    for _ in range(3):  # heirs of heirs
        errors |= {
            node.name
            for node in NODES
            if isinstance(node, ast.ClassDef) and any(getattr(base, "id", "") in errors for base in node.bases)
        }
    for node in NODES:
        if isinstance(node, ast.FunctionDef) and node.name == "validate_inputs":
            returned = (text_of(inner.value) for inner in ast.walk(node) if isinstance(inner, ast.Return))
            yield from filter(None, returned)
        if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in {
            *errors,
            *TELLING,
        }:
            yield from (text for text in map(text_of, node.args) if len(re.findall(r"\w+", text or "")) > 2)


def says(key, message):
    parts = key.split("…")
    return all(part in message for part in parts) and re.search(".*".join(map(re.escape, parts)), message, re.DOTALL)


@pytest.mark.parametrize("key", KEYS)
def test_every_message_of_the_troubleshooting_page_is_one_of_the_programs(key):
    assert len(re.findall(r"\w+", key)) > 1 and any(says(key, message) for message in STRINGS)


def test_every_message_of_the_program_is_on_the_troubleshooting_page():
    assert [message for message in messages() if not any(says(key, message) for key in KEYS)] == []


def test_troubleshooting_has_an_answer_for_every_message():
    below = re.split(r"(?m)^### .*$", TROUBLESHOOTING)[1:]
    assert all(re.sub(r"(?m)^[#|].*$", "", answer).strip() for answer in below)
    assert all(answer.strip() for answer in re.findall(r"(?m)^\| `.*?` \|(.*)\|$", TROUBLESHOOTING))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / unquote(link)).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_name_no_path_of_one_machine(page):
    assert not re.search(r"(?<![\w.])/(work|home|root|tmp|Users)/", page.read_text(encoding="utf-8"))
