"""Sweep and Sheet in a real server: every combination is the picture that the library draws, in its place."""

import graphs
import numpy as np
import pytest
import torch
from graphs import PROMPT, Graph, failure, relative, tiny
from PIL import Image

from janusflow_core.image import pixels
from janusflow_core.sheet import sheet


@pytest.fixture(scope="module", autouse=True)
def stocked(server):
    graphs.stock(server.base / "models")


def sheets(graph: Graph, server, node) -> list[Image.Image]:
    saved = graph.add("SaveImage", images=node, filename_prefix="sheets/test")
    result = graph.run(server)
    found = [server.output_path(image) for image in result.outputs[saved.name]["images"]]
    return [Image.open(path).convert("RGB") for path in found]


def test_a_sheet_shows_every_combination(server):
    graph = Graph()
    loaded = graph.load(vae="from checkpoint")
    swept = graph.add("JanusFlowSweep", columns="1, 3", rows="1.0, 2.5, 6", column_name="steps", row_name="cfg")
    sampled = graph.flow(loaded, graph.encode(loaded), steps=swept[0], cfg=swept[1], batch_size=2)
    decoded = graph.add("JanusFlowVAEDecode", samples=sampled, vae=loaded[2], longest_side=0)
    found = sheets(graph, server, graph.add("JanusFlowSheet", images=decoded, sweep=swept[2]))
    assert len(found) == 2  # one for each picture of the batch
    for number, whole in enumerate(found):
        cells = [
            [tiny().generate(PROMPT, steps=steps, guidance=cfg, seed=7 + number, solver="euler")[0] for steps in (1, 3)]
            for cfg in (1.0, 2.5, 6.0)
        ]
        expected = sheet(cells, ["steps 1", "steps 3"], ["cfg 1", "cfg 2.5", "cfg 6"])
        assert whole.size == expected.size
        assert np.abs(np.asarray(whole, int) - np.asarray(expected, int)).max() <= 3


def test_words_go_through_any_node(server):
    """Prompts and ComfyUI's own sampler names, from one list each; a single value makes a single row."""
    graph = Graph()
    loaded = graph.load(vae="from checkpoint")
    swept = graph.add("JanusFlowSweep", columns="a red heart | two stars", rows="heun", column_name="", row_name="")
    encoded = graph.encode(loaded, swept[0])
    sampled = graph.ksampler(loaded, encoded[0], encoded[1], sampler_name=swept[1])
    decoded = graph.add("VAEDecode", samples=sampled, vae=loaded[2])
    (whole,) = sheets(graph, server, graph.add("JanusFlowSheet", images=decoded, sweep=swept[2]))
    cells = [
        tiny().generate(text, steps=4, guidance=2.0, seed=7, solver="heun")[0] for text in ("a red heart", "two stars")
    ]
    expected = sheet([cells], ["column a red heart", "column two stars"], ["row heun"])
    assert whole.size == expected.size
    assert relative(pixels(whole), pixels(expected)) < 0.01


def test_what_does_not_fit_the_sweep_is_told(server):
    graph = Graph()
    loaded = graph.load(vae="from checkpoint")
    swept = graph.add("JanusFlowSweep", columns="1, 2", rows="1, 2", column_name="steps", row_name="cfg")
    one = graph.add(
        "JanusFlowVAEDecode", samples=graph.flow(loaded, graph.encode(loaded)), vae=loaded[2], longest_side=0
    )
    sheets_node = graph.add("JanusFlowSheet", images=one, sweep=swept[2])
    graph.add("PreviewImage", images=sheets_node)
    failure(server, graph, "JanusFlowSheet", "Sheet got 1 pictures for 4 combinations of steps and cfg")


@pytest.mark.parametrize("columns", ["", " , ", "|"])
def test_a_sweep_through_nothing_is_told(server, columns):
    graph = Graph()
    swept = graph.add("JanusFlowSweep", columns=columns, rows="1", column_name="steps", row_name="cfg")
    graph.show(swept[0])
    failure(server, graph, "JanusFlowSweep", "steps has no values to go through: write them as 5,10,20")


def test_a_batch_of_one_sheet_is_an_image(pack):
    with torch.inference_mode():
        columns, rows, swept = pack.node("sweep")("1, 2", "true")
        assert (columns, rows) == ([1, 2], [True, True])
        whole = pack.node("sheet")([torch.zeros(1, 8, 8, 3), torch.ones(1, 8, 8, 3)], [swept])
        assert whole.shape[0] == 1 and whole.shape[3] == 3 and whole.dtype == torch.float32
