"""What the editor shows in other languages: the same nodes, inputs and outputs as in English, and no more."""

import json
import re
from pathlib import Path

import pytest

from janusflow_core.host.find import Json
from tools.make_locales import texts_of

LOCALES = Path(__file__).resolve().parents[2] / "locales"
FULL = ["zh"]  # with tooltips; the rest have names and descriptions
NAMED = ["ja", "ko", "fr", "de", "es"]


def read(language: str, file: str = "nodeDefs") -> Json:
    return json.loads((LOCALES / language / f"{file}.json").read_text(encoding="utf-8"))


def leaves(texts: Json, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], str]:
    """Path of keys -> text."""
    found = {}
    for key, value in texts.items():
        found |= leaves(value, (*path, key)) if isinstance(value, dict) else {(*path, key): value}
    return found


def kept(text: str) -> set[str]:
    """What no translation changes: names of files and options, and numbers."""
    return {*re.findall(r"`[^`]*`", text), *re.findall(r"\d+(?:\.\d+)?", text)}


def test_english_is_what_the_nodes_say(server):
    nodes = {name: texts_of(node) for name, node in server.object_info().items() if name.startswith("JanusFlow")}
    assert read("en") == nodes, "run python -m tools.make_locales, and translate what is new"
    assert all(leaves(nodes).values())


@pytest.mark.parametrize("language", [*FULL, *NAMED])
def test_a_language_has_every_text(language):
    english, found = leaves(read("en")), leaves(read(language))
    wanted = {path for path in english if language in FULL or path[-1] != "tooltip"}
    assert set(found) == wanted
    assert all(text.strip() for text in found.values())
    assert [path for path, text in found.items() if path[-1] != "name" and not kept(english[path]) <= kept(text)] == []
    assert leaves(read(language, "main")).keys() == leaves(read("zh", "main")).keys()


@pytest.mark.parametrize("language", [*FULL, *NAMED])
def test_what_is_said_of_a_node_is_translated(language):
    english, found = leaves(read("en")), leaves(read(language))
    said = [path for path in found if path[-1] in ("description", "tooltip", "display_name")]
    assert [path for path in said if found[path] == english[path]] == []


def test_the_server_gives_all_of_them(server):
    served = server.get("/i18n")
    for language in (*FULL, *NAMED, "en"):
        assert {name: served[language]["nodeDefs"][name] for name in read(language)} == read(language)
    assert served["zh"]["contextMenu"] == read("zh", "main")["contextMenu"]
