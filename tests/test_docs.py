"""The pages say what the program is: generated parts, help for every input, messages, links."""

import ast
import importlib.util
import json
import re

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
        told = dict(re.findall(r"(?m)^\| `(\w+)` \|.*\| (.*) \|$", page))
        wanted = [socket.id for socket in schema.inputs]
        wanted += [socket.options["display_name"] for socket in schema.outputs]
        assert [each for each in wanted if not told.get(each, "").strip()] == [], f"{name}, {locale}"


def test_there_is_no_help_for_nodes_that_are_gone(nodes):
    assert {folder.name for folder in (PACK / "web" / "docs").iterdir()} == set(nodes)


def test_every_file_that_a_workflow_names_is_described():
    about = json.loads((PACK / "docs" / "files.json").read_text(encoding="utf-8"))
    assert set(about) == set(tool.tables.make_workflows.MODELS)


def messages():
    """What the program may say: every string that is no docstring, with a mark for each part that differs."""
    found = []
    for path in (*(PACK / "pipeline").rglob("*.py"), *(PACK / "nodes").glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(part.value if isinstance(part, ast.Constant) else "\0" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                found.append(node.value)
    return found


@pytest.mark.parametrize("key", re.findall(r"(?m)^### `(.*)`$", TROUBLESHOOTING))
def test_every_message_of_the_troubleshooting_page_is_one_of_the_programs(key):
    pattern = re.compile(".*".join(re.escape(part) for part in key.split("…")), re.DOTALL)
    assert any(pattern.search(message) for message in messages())


def test_troubleshooting_has_an_answer_below_every_message():
    below = re.split(r"(?m)^### .*$", TROUBLESHOOTING)[1:]
    assert all(re.sub(r"(?m)^#.*$", "", answer).strip() for answer in below)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_name_no_path_of_one_machine(page):
    assert not re.search(r"(?<![\w.])/(work|home|root|tmp|Users)/", page.read_text(encoding="utf-8"))
