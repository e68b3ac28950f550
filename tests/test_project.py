"""What the repository says about itself: the README, help pages, versions and files agree with the code."""

import ast
import importlib.util
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import yaml
from PIL import Image

import janusflow_core
from janusflow_core import cli
from janusflow_core.pipeline import JanusFlowPipeline

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
HELP = ROOT / "web" / "docs"
LANGUAGES = ["zh"]  # of the help pages, beside English
TRANSLATED = sorted(path for language in LANGUAGES for path in HELP.glob(f"*/{language}.md"))
DOCS = {path.stem: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), *sorted(HELP.glob("*.md")), *TRANSLATED]
LONGEST = 250  # lines of the README
MANY = 2**32  # larger limits are written as powers


@cache
def files() -> tuple[Path, ...]:
    """Every file that git tracks or would add."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return tuple(path for name in listed.split("\0") if name and (path := ROOT / name).is_file())


# --- README -----------------------------------------------------------------------------------------------------


def test_the_readme_begins_with_the_two_commands():
    blocks = re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert blocks[:2] == ["python3 start.py demo\n", "python3 start.py test\n"]
    spec = importlib.util.spec_from_file_location("start", ROOT / "start.py")
    start = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(start)
    assert set(start.RUNS) == {"demo", "test"}
    assert start.arguments("test", []) == ["-m", "pytest", "-n", "2", "--dist", "worksteal"]
    assert start.arguments("test", ["-x"]) == ["-m", "pytest", "-x"]
    assert start.arguments("demo", []) == ["-m", "janusflow_core.cli", "demo"]


@pytest.mark.parametrize("name", ["README.md", "README.zh.md"])
def test_a_readme_is_short_and_leads_to_every_page(name: str):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert "TODO" not in text and text.count("\n") <= LONGEST
    assert [page for page in DOCS if f"(docs/{page}.md)" not in text] == []


@pytest.mark.parametrize("name", ["README.md", "README.zh.md"])
def test_a_readme_shows_every_workflow(name: str):
    linked = set(re.findall(r"\]\(workflows/([^)]+\.json)\)", (ROOT / name).read_text(encoding="utf-8")))
    assert {unquote(link) for link in linked} == {path.name for path in (ROOT / "workflows").glob("*.json")}


def test_the_chinese_readme_says_the_same():
    """The same code, pictures and rows, in the same order, and the same figures in each row."""
    chinese = (ROOT / "README.zh.md").read_text(encoding="utf-8")

    def blocks(text: str) -> list[str]:
        return re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)

    def rows(text: str) -> list[set[float]]:
        plain = re.sub(r"\]\([^)]*\)", "", text)
        return [numbers_in(row) for row in re.findall(r"^\|.*\|$", plain, re.MULTILINE)]

    assert blocks(chinese) == blocks(README) and rows(chinese) == rows(README)
    pictures = r"!\[[^\]]*\]\(([^)]+)\)"
    assert re.findall(pictures, chinese) == re.findall(pictures, README)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_pictures_exist(page: Path):
    text = page.read_text(encoding="utf-8")
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    base = HELP if page in TRANSLATED else page.parent  # ComfyUI looks from there
    anchors = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        if not link.startswith("https://"):
            assert (base / unquote(path)).exists() and (not anchor or path or anchor in anchors), link


@pytest.mark.parametrize(
    "method", ["generate", "describe", "choose", "yes_no", "number", "structured", "score", "reply"]
)
def test_the_librarys_page_shows_the_pipelines_signatures(method: str):
    signature = inspect.signature(getattr(JanusFlowPipeline, method))
    plain = [p.replace(annotation=p.empty) for p in signature.parameters.values() if p.name != "self"]
    told = str(inspect.Signature(plain)).replace("'", '"')
    assert f"pipe.{method}{told}" in re.sub(r"\s+", " ", DOCS["library"])


def test_the_commands_parse():
    pytest.importorskip("tyro", reason="tyro reads the command line")
    commands = re.findall(r"^\| `janusflow ([^`]+)` \|", DOCS["cli"], re.MULTILINE)
    assert set(re.findall(r"^janusflow (.+)$", README, re.MULTILINE)) <= set(commands)
    assert {type(cli.parse(shlex.split(command))) for command in commands} == set(cli.commands().values())


def test_the_tree_is_the_repositorys():
    tree = DOCS["house"].partition("```\n")[2].partition("```")[0]
    parts = re.split(r"^(\S+/) .*\n", tree, flags=re.MULTILINE)
    folders = zip(parts[1::2], parts[2::2], strict=True)
    told = {folder: set(re.findall(r"\b\w+\.py\b", text)) for folder, text in folders}
    sources = [file.relative_to(ROOT) for part in ("janusflow_core", "nodes") for file in (ROOT / part).rglob("*.py")]
    for folder in {f"{file.parent.as_posix()}/" for file in sources}:
        assert told[folder] == {file.name for file in (ROOT / folder).glob("[!_]*.py")}, folder
    assert all((ROOT / folder).is_dir() for folder in told)


@cache
def sentences() -> str:
    """All texts in the code, f-strings in their pieces."""
    sources = [
        file.read_text(encoding="utf-8")
        for folder in ("janusflow_core", "nodes")
        for file in (ROOT / folder).rglob("*.py")
    ]
    constants = [node for source in sources for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)]
    return "\n".join(node.value for node in constants if isinstance(node.value, str))


def test_the_errors_of_troubleshooting_are_the_codes():
    told = re.findall(r'^\*\*"(.+?)"\*\*', DOCS["troubleshooting"], re.MULTILINE | re.DOTALL)
    assert len(told) > 8
    for sentence in told:
        for piece in re.sub(r"\s+", " ", sentence).split("…"):
            assert piece in sentences(), piece


# --- help pages -------------------------------------------------------------------------------------------------


def calls_in(part: ast.AST) -> list[ast.Call]:
    return [call for call in ast.walk(part) if isinstance(call, ast.Call)]


def nodes() -> dict[str, dict[str, dict[str, Any]]]:
    """Node id -> name of each input and output -> the constant arguments that describe it, read from the source."""
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in (ROOT / "nodes" / "native").glob("*.py")]
    shared = [part for tree in trees for part in tree.body]
    inputs_of = {part.name: calls_in(part) for part in shared if isinstance(part, ast.FunctionDef)}
    found = {}
    for file in sorted((ROOT / "nodes").glob("*.py")):
        own = calls_in(ast.parse(file.read_text(encoding="utf-8")))
        calls = [call for one in own for call in (one, *inputs_of.get(ast.unparse(one.func), ()))]
        described = {}
        for call in calls:
            plain = [word for word in call.keywords if isinstance(word.value, ast.Constant | ast.UnaryOp)]
            words = {word.arg: ast.literal_eval(word.value) for word in plain}
            kind = ast.unparse(call.func)
            if kind == "io.Schema":
                found[words["node_id"]] = described
            elif kind.endswith(".Input"):
                described[call.args[0].value] = words
            elif kind.endswith(".Output"):
                described[words["display_name"]] = {}
    return found


NODES = nodes()


def page_of(node: str, language: str = "en") -> str:
    # In English not NODE/en.md: in every language without a page of its own that one would not be found.
    path = HELP / f"{node}.md" if language == "en" else HELP / node / f"{language}.md"
    return re.sub(r"\n +", " ", path.read_text(encoding="utf-8"))


def rows_of(page: str) -> dict[str, str]:
    """Input or output -> what the page says of it."""
    return dict(re.findall(r"^- \*\*(\w+)\*\*(?: \([^)]*\)|（[^）]*）)?[:：] ?(.*)$", page, re.MULTILINE))


def numbers_in(text: str) -> set[float]:
    return {float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", text.replace("−", "-").replace(",", ""))}


def test_every_node_has_its_help_pages_and_a_line_in_the_readme():
    folders = [path for path in HELP.iterdir() if path.is_dir() and path.name != "pictures"]
    assert {path.stem for path in HELP.glob("*.md")} == {path.name for path in folders} == set(NODES)
    assert all(
        {path.name for path in folder.iterdir()} == {f"{language}.md" for language in LANGUAGES} for folder in folders
    )
    assert all(f"(web/docs/{node}.md)" in README for node in NODES)


@pytest.mark.parametrize("language", ["en", *LANGUAGES])
@pytest.mark.parametrize("node", NODES)
def test_a_help_page_tells_every_input_with_its_range_and_every_output(node: str, language: str):
    rows = rows_of(page_of(node, language))
    assert set(rows) == set(NODES[node])
    for name, words in NODES[node].items():
        limits = [words[key] for key in ("default", "min", "max") if type(words.get(key)) in (int, float)]
        assert {limit for limit in limits if limit < MANY} <= numbers_in(rows[name]), name


@pytest.mark.parametrize("language", ["en", *LANGUAGES])
@pytest.mark.parametrize("node", NODES)
def test_a_help_page_begins_with_a_name_and_a_picture_of_the_node(node: str, language: str):
    names = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text("utf-8"))
    mark = "" if language == "en" else f".{language}"
    title, _, picture = page_of(node, language).split("\n")[:3]
    assert title == f"# {names[node]['display_name']}"
    assert re.fullmatch(rf"!\[.+\]\(pictures/{node}{re.escape(mark)}\.jpg\)", picture)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("node", NODES)
def test_a_translated_page_says_the_same(node: str, language: str):
    """The same inputs and outputs in the same order, and of each the same files, options and numbers."""
    english, found = rows_of(page_of(node)), rows_of(page_of(node, language))
    assert list(english) == list(found)
    for name, text in english.items():
        assert set(re.findall(r"`[^`]+`", text)) <= set(re.findall(r"`[^`]+`", found[name])), name
        assert numbers_in(text) <= numbers_in(found[name]), name


# --- the package ------------------------------------------------------------------------------------------------


def test_versions_agree():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    in_project = re.findall(r'^version = "(.+)"$', project, re.MULTILINE)
    assert in_project == [janusflow_core.__version__] == re.findall(r"^## (\S+)", changelog, re.MULTILINE)[:1]


def test_files_stay_small():
    size = {
        folder: sum(file.stat().st_size for file in files() if file.is_relative_to(ROOT / folder))
        for folder in ("janusflow_core/bundled", "tests/golden", ".")
    }
    assert size["janusflow_core/bundled"] < 25_000_000 and size["tests/golden"] < 12_000_000
    assert size["."] - size["janusflow_core/bundled"] - size["tests/golden"] < 5_000_000


def test_no_file_names_a_place_on_somebodys_machine():
    place = re.compile(rb"(?<![\w.])/(?:root|work|Users/\w+)/|[A-Z]:\\+Users")
    assert [str(file.relative_to(ROOT)) for file in files() if place.search(file.read_bytes())] == []


def test_the_registry_gets_an_icon_and_a_banner_of_its_sizes():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for name, ratio in (("Icon", 1), ("Banner", 21 / 9)):
        (url,) = re.findall(rf'^{name} = "(.+)"$', project, re.MULTILINE)
        width, height = Image.open(ROOT / url.partition("/main/")[2]).size
        assert width / height == pytest.approx(ratio) and (name == "Banner" or width <= 400)


def test_github_runs_what_is_there():
    """Workflows and issue forms parse, and every file and command of ours that they name exists."""
    forms = sorted((ROOT / ".github").rglob("*.yml"))
    assert {path.name for path in forms} == {"config.yml", "fault.yml", "wish.yml", "publish.yml", "tests.yml"}
    for path in forms:
        read = yaml.safe_load(path.read_text("utf-8"))
        for job in read.get("jobs", {}).values():
            for command in filter(None, (step.get("run") for step in job["steps"])):
                named = [word for word in shlex.split(command) if re.match(r"(start\.py|\.ci/|tests/|pyproject)", word)]
                assert all((ROOT / word).exists() for word in named), command
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / "fault.yml").read_text("utf-8"))
    (doctor,) = (field for field in form["body"] if field["id"] == "doctor")
    assert doctor["validations"]["required"] and "start.py doctor" in doctor["attributes"]["description"]


def test_the_registry_would_take_the_pack(tmp_path: Path):
    pytest.importorskip("comfy_cli", reason="comfy-cli validates the pack")
    home = {"HOME": str(tmp_path), "USERPROFILE": str(tmp_path)}  # where comfy-cli keeps its settings
    nowhere = {name: "http://127.0.0.1:9" for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")}
    env = {**os.environ, **home, **nowhere, "DO_NOT_TRACK": "1", "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-m", "comfy_cli", "--skip-prompt", "node", "validate"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, encoding="utf-8", timeout=120)
    said = done.stdout + done.stderr
    assert done.returncode == 0 and "passed" in said and "Invalid" not in said, said
