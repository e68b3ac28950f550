"""Caption Folder in a real server: what it writes, that it stops and goes on, that it stays in its folders."""

import re
import shutil
import time
from pathlib import Path

import graphs
import pytest
from graphs import Graph, tiny
from PIL import Image

from janusflow_core.bulk.folder import ROOM
from janusflow_core.captions import PRESETS, read_table

THINGS = [("red", "circle"), ("blue", "square"), ("green", "star"), ("orange", "heart"), ("cyan", "triangle")]
SCENES = [graphs.scene((color, shape, 48, 48)) for color, shape in THINGS]


@pytest.fixture(scope="module", autouse=True)
def stocked(server):
    graphs.stock(server.base / "models")


@pytest.fixture
def folder(server, request):
    """Five scenes in a folder of the server's inputs, one of them deeper."""
    root = server.base / "input" / re.sub(r"\W", "_", request.node.name)
    (root / "deep").mkdir(parents=True)
    for number, scene in enumerate(SCENES):
        scene.save(root / ("deep" if number == 4 else "") / f"{number}.png")
    yield root
    shutil.rmtree(root)


def captioner(graph: Graph, folder: str, checkpoint: str = "janusflow-tiny", **changed):
    inputs = {"ask": "own question", "question": "Describe the image.", "write": "txt", "exists": "skip"}
    inputs |= {"trigger": "", "max_new_tokens": 8, "mode": "greedy", "include": "", "exclude": "", "separator": ", "}
    loaded = graph.load(checkpoint)
    return graph.add("JanusFlowCaptionFolder", clip=loaded[1], folder=folder, **{**inputs, **changed})


def report(server, folder: str, **changed) -> str:
    graph = Graph()
    node = captioner(graph, folder, **changed)
    ((told,),) = graph.texts(server, node[1])
    return told


def texts(folder: Path) -> dict[str, str]:
    return {path.stem: path.read_text("utf-8") for path in folder.rglob("*.txt")}


def test_every_picture_gets_the_caption_that_describe_gives(server, folder):
    (folder / "broken.png").write_bytes(b"nothing")
    lines = report(server, folder.name).splitlines()
    assert lines[0] == "5 captioned, 1 failed" and lines[1].startswith("broken.png: ") and "Pillow" in lines[1]
    (folder / "broken.png").unlink()
    expected = {str(number): tiny().describe(scene, max_new_tokens=8) for number, scene in enumerate(SCENES)}
    assert texts(folder) == expected and len(set(expected.values())) == 5
    assert not (folder / ROOM).exists()
    # What is there is left alone, and the node looks again when files have changed.
    (folder / "1.txt").write_text("mine", encoding="utf-8")
    (folder / "2.txt").unlink()
    assert report(server, folder.name) == "1 captioned, 4 had a caption"
    assert texts(folder) == {**expected, "1": "mine"}


def test_folders_that_hold_pictures_are_offered_first(server, folder):
    above, empty, hidden = (server.base / "input" / name for name in ("a_above/of", "a_empty", "a_above/.thumbs"))
    for place in (above, empty, hidden):
        place.mkdir(parents=True)
    SCENES[0].save(above / "PICTURE.JPG")
    required = server.object_info("JanusFlowCaptionFolder")["JanusFlowCaptionFolder"]["input"]["required"]
    offered = required["folder"][1]["options"]
    shutil.rmtree(above.parent)
    shutil.rmtree(empty)
    first = ["a_above", "a_above/of", folder.name, f"{folder.name}/deep"]
    assert offered[:4] == first and "a_empty" in offered[4:] and not [name for name in offered if ".thumbs" in name]


def test_a_table_of_a_folder_in_output(server, folder):
    inside = server.base / "output" / folder.name
    shutil.copytree(folder, inside)
    told = report(
        server,
        f"{folder.name} [output]",
        write="jsonl",
        trigger="sks",
        ask="short",
        include="*.png, *.jpg",
        exclude="deep/*",
    )
    assert told == "4 captioned" and texts(inside) == texts(folder) == {}
    rows = read_table(inside / "metadata.jsonl")
    wanted = tiny().describe(SCENES[2], PRESETS["short"], max_new_tokens=8)
    assert rows["2.png"]["text"] == f"sks, {wanted}" and sorted(rows) == ["0.png", "1.png", "2.png", "3.png"]


def test_sampled_captions_are_those_of_the_seed(server, folder):
    sampling = {"mode": "sample", "mode.temperature": 2.0, "mode.top_p": 1.0, "mode.seed": 5, "question": "Go on."}
    assert report(server, folder.name, **sampling) == "5 captioned"
    expected = tiny().describe(SCENES[3], "Go on.", max_new_tokens=8, temperature=2.0, seed=8)
    assert texts(folder)["3"] == " ".join(expected.split())


def test_a_cancelled_run_goes_on_where_it_was(server, folder):
    for number in range(300):
        Image.new("RGB", (96, 96), (number % 250, 9, 99)).save(folder / f"more_{number:03}.png")
    (folder / "0.txt").write_text("mine", encoding="utf-8")
    graph = Graph()
    captioner(graph, folder.name, exists="append")

    def interrupt(event) -> None:
        if event["type"] == "progress" and 0 < event["data"]["value"] < 200:
            server.interrupt()

    result = server.run(graph.prompt, on_event=interrupt)
    assert result.status == "interrupted"
    before = texts(folder)
    assert 1 < len(before) < 305 and (folder / ROOM).is_dir()
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*.txt") if path.read_text() != "mine"}
    time.sleep(0.01)
    assert report(server, folder.name, exists="append") == "305 captioned"
    assert all(path.stat().st_mtime_ns == then for path, then in times.items())
    after = texts(folder)
    assert after["0"] == "mine, a red circle" and all(
        after[name] == text for name, text in before.items() if text != "mine"
    )
    assert not (folder / ROOM).exists()


@pytest.mark.parametrize("place", ["..", "../models", "/etc", "../../outside"])
def test_no_folder_outside_is_touched(server, folder, place):
    graph = Graph()
    captioner(graph, place)
    with pytest.raises(RuntimeError, match="not in list|not_in_list"):
        server.run(graph.prompt)


@pytest.mark.parametrize("name", ["../outside", "../outside [output]", "/etc", "link"])
def test_a_way_out_of_the_folders_is_refused(pack, name):
    """The editor offers no such folder, but a link from another node may name one."""
    outside = pack.base / "outside"
    outside.mkdir(exist_ok=True)
    SCENES[0].save(outside / "a.png")
    if not (pack.base / "input" / "link").exists():
        (pack.base / "input" / "link").symlink_to(outside)
    with pytest.raises(ValueError, match="lies outside ComfyUI's input and output folders: move it into one"):
        inputs = {"ask": "short", "question": "", "exists": "skip", "trigger": "", "mode": {"mode": "greedy"}}
        inputs |= {"include": "", "exclude": "", "separator": ", ", "max_new_tokens": 4}
        pack.node("caption")(pack.tiny[1], name, "txt", **inputs)
    assert [path.name for path in outside.iterdir()] == ["a.png"]


def test_captions_are_learnt_from_in_the_same_graph(server, folder):
    """Caption a folder, then train on it: the folder is handed on, and the training waits."""
    graph = Graph()
    named = captioner(graph, folder.name, trigger="a sks")
    trained = graph.tune(graph.load(vae="from checkpoint"), named[0], name=folder.name, steps=2)
    ((told,),) = graph.texts(server, trained[3])
    assert "5 pictures" in told and texts(folder)["0"] == "a sks, a red circle"
