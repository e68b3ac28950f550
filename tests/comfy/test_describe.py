"""Describe Image: what it asks, about which pictures, how its words come, and how many pictures it takes at once."""

import graphs
import numpy as np
import pytest
import torch
from graphs import GOLDEN_FILE, LEFT_RIGHT, STARS, Graph, golden, tiny
from inprocess import since
from PIL import Image

from janusflow_core.captions import PRESETS
from janusflow_core.image import open_image, pixels

TEXT = 3  # the kind of a binary event that shows words on a node


@pytest.fixture(scope="module", autouse=True)
def stocked(server):
    graphs.stock(server.base / "models")


def batch_of(graph: Graph, names: list[str]):
    first, second = (graph.add("LoadImage", image=name) for name in names)
    return graph.add("ImageBatch", image1=first, image2=second)


def test_all_pictures_can_go_into_one_question(server, uploaded):
    graph, question = Graph(), "What differs?"
    loaded = graph.load(GOLDEN_FILE)
    asked = graph.describe(loaded[1], batch_of(graph, uploaded), question, pictures="together")
    (found,) = graph.texts(server, asked)
    pipe = golden.pipeline()
    assert found == [pipe.describe([LEFT_RIGHT, STARS], question, together=True, max_new_tokens=8)]
    assert found[0] not in pipe.describe([LEFT_RIGHT, STARS], question, max_new_tokens=8)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_asks_its_own_question(server, uploaded, preset):
    graph = Graph()
    loaded = graph.load(GOLDEN_FILE)
    image = graph.add("LoadImage", image=uploaded[0])
    (found,) = graph.texts(server, graph.describe(loaded[1], image, " ", ask=preset))
    assert found == [golden.pipeline().describe(LEFT_RIGHT, PRESETS[preset], max_new_tokens=8)]


def shown(result, node) -> list[str]:
    """The words that were shown on a node, in order."""
    found = []
    for kind, payload in result.previews:
        length = int.from_bytes(payload[:4], "big")
        if kind == TEXT and payload[4 : 4 + length].decode() == node.name:
            found.append(payload[4 + length :].decode())
    return found


def test_words_are_shown_while_they_come_with_their_speed(server, uploaded):
    graph = Graph()
    loaded = graph.load(GOLDEN_FILE)
    asked = graph.describe(loaded[1], batch_of(graph, uploaded), "Go on.", tokens=400)
    graph.show(asked)
    *growing, last = shown(graph.run(server), asked)
    texts = golden.pipeline().describe([LEFT_RIGHT, STARS], "Go on.", max_new_tokens=400)
    assert last == "\n\n".join(texts)
    assert 2 <= len(growing) <= 200  # not once a token
    lengths = []
    for text in growing:
        words, _, speed = text.rpartition("\n\n")
        assert speed.startswith("(") and speed.endswith(" tokens/s)") and float(speed[1:-10]) > 0
        assert all(whole.startswith(part.strip()) for whole, part in zip(texts, words.split("\n\n"), strict=False))
        lengths.append(len(words))
    assert lengths == sorted(set(lengths))


def test_nothing_is_asked_twice_while_nothing_changes(server, uploaded):
    graph = Graph()
    loaded = graph.load(GOLDEN_FILE)
    image = graph.add("LoadImage", image=uploaded[0])
    asked = graph.describe(loaded[1], image, "Once.", temperature=1.5, top_p=1.0, seed=11)
    (first,) = graph.texts(server, asked)
    again = graph.run(server)
    cached = next(event for event in again.events if event["type"] == "execution_cached")["data"]["nodes"]
    assert asked.name in cached
    other = graph.describe(loaded[1], image, "Once.", temperature=1.5, top_p=1.0, seed=12)
    assert graph.texts(server, other) != [first]


# --- what files hold --------------------------------------------------------------------------------------------


def transparent(path) -> None:
    LEFT_RIGHT.convert("RGBA").save(path)


def turned(path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    LEFT_RIGHT.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)


def grey(path) -> None:
    LEFT_RIGHT.convert("L").save(path)


def grey_in_16_bits(path) -> None:
    Image.fromarray(np.asarray(LEFT_RIGHT.convert("L")).astype(np.uint16) * 257).save(path)


def with_a_palette(path) -> None:
    LEFT_RIGHT.quantize(255).save(path)


@pytest.mark.parametrize("write", [transparent, turned, grey, grey_in_16_bits, with_a_palette])
def test_files_of_every_kind_are_seen_as_they_look(server, tmp_path, write):
    if write is grey_in_16_bits:
        since("0.24.1", "a LoadImage that reads 16 bits right")
    path = tmp_path / f"{write.__name__}.png"
    write(path)
    seen = LEFT_RIGHT.convert("L").convert("RGB") if "grey" in write.__name__ else LEFT_RIGHT
    graph = Graph()
    loaded = graph.load()
    image = graph.add("LoadImage", image=server.upload_image(path))
    (found,) = graph.texts(server, graph.describe(loaded[1], image))
    assert found == [tiny().describe(seen, max_new_tokens=8)] == [tiny().describe(path, max_new_tokens=8)]
    assert max(abs(np.asarray(open_image(path)).astype(int) - np.asarray(seen)).flatten()) <= 8


# --- memory -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("free", "batches"), [(1, [1] * 9), (4, [2, 2, 2, 2, 1]), (1 << 20, [9])])
def test_a_batch_is_cut_by_the_free_memory_and_says_the_same(pack, monkeypatch, free, batches):
    """`free` counts conversations, of which half of the memory is for."""
    clip, native = pack.tiny[1], pack.module("nodes.native.clip")
    text, sizes, embed = clip.cond_stage_model, [], clip.cond_stage_model.embed
    pictures = [pixels(graphs.scene(("red", "circle", 20 + 6 * k, 48))).movedim(0, -1) for k in range(9)]
    tokens = len(text.tokenizer.lay_out(clip.tokenize("Go on.", image=pictures[0][None])[native.NAME][0]))
    row = native.decoding.bytes_a_row(text.config.language, tokens + 6, torch.float32)
    really = native.model_management.get_free_memory  # which ComfyUI's attention asks for more numbers
    monkeypatch.setattr(
        native.model_management, "get_free_memory", lambda *args: really(*args) if args[1:] else free * row
    )
    monkeypatch.setattr(text, "embed", lambda rows, dtype: (sizes.append(len(rows)), embed(rows, dtype))[1])
    with torch.inference_mode():
        describe, sampling = pack.node("describe"), {"mode": "sample", "temperature": 2.0, "top_p": 1.0, "seed": 3}
        texts = describe(clip, torch.stack(pictures), "Go on.", 6, sampling)
        assert sizes == batches
        alone = describe(clip, pictures[7][None], "Go on.", 6, {**sampling, "seed": 10})
    assert texts[7:8] == alone and len(set(texts)) > 1
