"""What stays in memory: nothing of a run that is over, and nothing that must give way to another model."""

import graphs
import psutil
import pytest
import torch
from graphs import Graph
from inprocess import draw

RUNS = 20


@pytest.fixture(scope="module", autouse=True)
def stocked(server):
    graphs.stock(server.base / "models")


def resident(server) -> int:
    """Bytes that the server and its children hold."""
    server_process = psutil.Process(server._process.pid)
    return sum(process.memory_info().rss for process in (server_process, *server_process.children(recursive=True)))


def there_and_back(server, seed: int) -> str:
    graph = Graph()
    loaded = graph.load(vae="from checkpoint")
    sampled = graph.flow(loaded, graph.encode(loaded), seed=seed, steps=6, cfg=2.5, batch_size=2)
    pictures = graph.add("JanusFlowVAEDecode", samples=sampled, vae=loaded[2], longest_side=0)
    graph.add("PreviewImage", images=pictures)
    return graph.texts(server, graph.describe(loaded[1], pictures))[0][0]


def test_twenty_runs_hold_no_more_than_the_first(server):
    for seed in range(4):
        there_and_back(server, seed)
    before = resident(server)
    said = {there_and_back(server, 100 + seed) for seed in range(RUNS)}
    assert len(said) > 1 and resident(server) < 1.03 * before


def test_a_model_that_gave_way_to_another_comes_back(pack):
    from comfy import model_management

    with torch.inference_mode():
        model, clip, _ = pack.tiny
        expected = draw(pack, model, clip)
        ours = [model, clip.patcher]
        assert any(loaded.model is model for loaded in model_management.current_loaded_models)
        model_management.free_memory(1e30, model.load_device)  # as a larger model asks for it
        held = [loaded.model for loaded in model_management.current_loaded_models]
        assert not any(patcher in held for patcher in ours)
        assert torch.equal(draw(pack, model, clip), expected)
