"""REPA Fine-tune in a real server: what one sees while it learns, a cancel, and its LoRA in the native loaders."""

import pytest
import torch
from graphs import TINY, Graph, previews, relative, tiny
from safetensors import safe_open
from safetensors.torch import load_file

from janusflow_core.world.talk import phrase
from tools.make_crescents import CRESCENTS, pictures_of

PROMPT = "a red crescent"
STEPS = 12


@pytest.fixture(scope="module")
def folder(server) -> str:
    """Four captioned pictures in the server's input folder."""
    path = server.base / "input" / "crescents"
    path.mkdir()
    for number, (thing, picture) in enumerate(pictures_of(CRESCENTS, 4, seed=0)):
        picture.save(path / f"{number}.png")
        (path / f"{number}.txt").write_text(phrase(*thing), encoding="utf-8")
    return path.name


def teaching(folder: str, **changed):
    """A graph that trains and saves, and its training node."""
    graph = Graph()
    loaded = graph.load(TINY, vae="from checkpoint")
    node = graph.tune(loaded, folder, **{"steps": STEPS, **changed})
    graph.add("SaveLoRA", lora=node, prefix=f"loras/{changed.get('name', 'server')}")
    return graph, node


def saved(server, name: str):
    """The newest LoRA that a graph saved under this name."""
    return max((server.base / "output" / "loras").glob(f"{name}_*.safetensors"), key=lambda path: path.stat().st_mtime)


@pytest.fixture(scope="module")
def never_stopped(server, folder):
    graph, node = teaching(folder, name="whole")
    shown = graph.show(node[3])
    return node, shown, graph.run(server), saved(server, "whole")


def test_one_sees_how_it_learns(never_stopped):
    node, shown, result, _ = never_stopped
    (report,) = result.outputs[shown.name]["text"]
    assert report.startswith(f"finished: steps 0 to {STEPS} of {STEPS}") and "4 pictures" in report
    at_node = [event["data"] for event in result.events if event.get("data", {}).get("node") == node.name]
    total = 4 + 2 + STEPS  # pictures, dreams, steps; what came before is the model's loading
    values = [data["value"] for data in at_node if data.get("max") == total]
    assert values == sorted(values) and values[-1] == total
    assert [picture.size for picture in previews(result, node)] == [(512, 512)] * (STEPS // 5)


def test_native_load_lora_gives_the_merged_model(server, never_stopped):
    """The file of Save LoRA Weights, in models/loras, chosen in Load LoRA: what the library draws with it."""
    *_, path = never_stopped
    loras = server.base / "models" / "loras"
    loras.mkdir(exist_ok=True)
    (loras / "crescent.safetensors").write_bytes(path.read_bytes())
    graph = Graph()
    loaded = graph.load()
    plain, said = graph.flow(loaded, graph.encode(loaded, PROMPT)), len(server.log())
    chosen = {"lora_name": "crescent.safetensors", "strength_model": 1.0, "strength_clip": 1.0}
    changed = graph.add("LoraLoader", model=loaded, clip=loaded[1], **chosen)
    alone = graph.add("LoraLoaderModelOnly", model=loaded, lora_name="crescent.safetensors", strength_model=1.0)
    sampled = graph.flow(changed, graph.encode(changed, PROMPT))
    found = graph.latents(server, plain, sampled, graph.flow(alone, graph.encode(loaded, PROMPT)))
    assert "lora key not loaded" not in server.log()[said:]
    pipe = tiny()
    pipe.load_lora(path)
    try:
        expected = pipe.generate(PROMPT, steps=4, guidance=2.0, seed=7, output="latent", solver="euler")
    finally:
        pipe.unload_loras()
    assert relative(found[1], expected) <= 1e-4 and torch.equal(found[1], found[2])
    assert relative(found[0], expected) > 1e-3


def test_cancelled_on_the_server_it_goes_on_to_the_same_lora(server, folder, never_stopped):
    graph, node = teaching(folder)

    def cancel(event):
        if event["type"] == "progress" and event["data"]["node"] == node.name and event["data"]["value"] == 4 + 2 + 5:
            server.interrupt()

    assert server.run(graph.prompt, on_event=cancel).status == "interrupted"
    (kept,) = (server.base / "output" / "loras").glob("server_*_steps.safetensors")
    done = int(kept.stem.split("_")[1])
    assert 5 <= done < STEPS
    with safe_open(kept, "pt") as file:
        assert file.metadata()["base"] == TINY
    graph, node = teaching(folder)
    shown = graph.show(node[3])
    (report,) = graph.run(server).outputs[shown.name]["text"]
    assert report.startswith(f"finished: steps {done} to {STEPS}")
    one, other = load_file(saved(server, "server")), load_file(never_stopped[3])
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
