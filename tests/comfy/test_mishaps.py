"""What happens to servers: files change under them, memory ends, another server shares their models."""

import itertools
import os
import resource
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import graphs
import psutil
import pytest
from graphs import Graph, failure, golden, parts
from safetensors.torch import load_file

from janusflow_core.host.find import find_comfyui
from janusflow_core.host.server import Server
from janusflow_core.layout import save_folder, save_single

SEEDS = itertools.count(9000)
NAME, FOLDER = "changing.safetensors", "changing"


@pytest.fixture(scope="module")
def models(server) -> Path:
    graphs.stock(server.base / "models")
    return server.base / "models"


def drawing(name: str, seed: int = 0, **changed: object) -> Graph:
    graph = Graph()
    loaded = graph.load(name)
    graph.save(
        graph.flow(loaded, graph.encode(loaded), **{"seed": seed, "steps": 2, "width": 32, "height": 32, **changed})
    )
    return graph


def drawn(server: Server, graph: Graph):
    result = server.run(graph.prompt)
    assert result.status == "success", result.error
    (saved,) = (item for output in result.outputs.values() for item in output["latents"])
    return load_file(server.output_path(saved))["latent_tensor"]


def place(models: Path, seed: int, folder: bool) -> Path:
    """A checkpoint of other weights under the same name, put there as `mv` would."""
    fresh, pipe = models / "fresh", golden.micro_pipeline(seed=seed)
    if folder:
        save_folder(fresh, **parts(pipe))
        target = models / "janusflow" / FOLDER
        shutil.rmtree(target, ignore_errors=True)
        fresh.rename(target)
        return target / "model.safetensors"
    save_single(fresh, **parts(pipe))
    os.replace(fresh, models / "checkpoints" / NAME)
    return models / "checkpoints" / NAME


@pytest.mark.parametrize("folder", [False, True], ids=["a file", "a folder"])
def test_weights_that_were_replaced_are_read_anew_however_old_they_are(server, models, folder):
    name, latents = FOLDER if folder else NAME, []
    for seed, age in ((0, 0), (1, 10**6), (0, 10**7)):
        path = place(models, seed, folder)
        os.utime(path, (path.stat().st_mtime - age,) * 2)
        latents.append(drawn(server, drawing(name)))
    assert not latents[0].equal(latents[1]) and latents[0].equal(latents[2])


def test_a_file_written_over_under_a_loaded_model_does_no_harm(server, models):
    """Not replaced, and nobody is told: what was read from it must not change with it."""
    path, seed = place(models, 0, False), next(SEEDS)
    shutil.copy(path, path.with_name("copy.safetensors"))
    drawn(server, drawing(NAME, seed=next(SEEDS)))
    stat = path.stat()
    with path.open("r+b") as file:
        file.seek(stat.st_size // 2)
        file.write(bytes(stat.st_size // 2))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert drawn(server, drawing(NAME, seed)).equal(drawn(server, drawing("copy.safetensors", seed)))


def test_a_file_cut_short_since_is_named(server, models):
    path = place(models, 0, False)
    drawn(server, drawing(NAME, seed=next(SEEDS)))
    os.truncate(path, 1000)
    failure(server, drawing(NAME, seed=next(SEEDS)), "JanusFlowLoader", "cut short", "copy it again")
    path.unlink()
    with pytest.raises(RuntimeError, match="Value not in list"):
        server.run(drawing(NAME, seed=next(SEEDS)).prompt)


@pytest.fixture
def little_memory(server) -> Iterator[None]:
    """The server may have a gigabyte and a half more than it has once a model is loaded, whose file it maps often."""
    drawn(server, drawing(graphs.TINY, seed=next(SEEDS), width=0, height=0))
    process = psutil.Process(server._process.pid)
    before = process.rlimit(psutil.RLIMIT_AS)
    process.rlimit(psutil.RLIMIT_AS, (process.memory_info().vms + 15 * 10**8, before[1]))
    yield
    process.rlimit(psutil.RLIMIT_AS, before)


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="limits what another process may have")
def test_where_memory_ends_the_node_says_so_and_the_next_prompt_works(server, little_memory):
    huge = drawing(graphs.TINY, seed=next(SEEDS), width=400, height=400, batch_size=256)
    result = server.run(huge.prompt)
    assert result.error and result.error["node_type"] == "JanusFlowSampler", result.error["exception_message"]
    assert "memory" in result.error["exception_message"]
    assert server.run(drawing(graphs.TINY, seed=next(SEEDS), width=0, height=0).prompt).status == "success"


def test_two_servers_share_a_folder_of_models(server, models, tmp_path):
    """One writes a checkpoint and a LoRA there while the other draws."""
    (tmp_path / "models").symlink_to(models)
    checkout = Path(__file__).resolve().parents[2]
    with (
        Server(
            find_comfyui(), pack=checkout, pack_name="ComfyUI-JanusFlow", base=tmp_path, env={"OMP_NUM_THREADS": "1"}
        ) as other,
        ThreadPoolExecutor() as threads,
    ):
        seeds = [next(SEEDS) for _ in range(3)]
        both = [
            threads.submit(lambda one=one: [drawn(one, drawing(graphs.MICRO_FILE, seed)) for seed in seeds])
            for one in (server, other)
        ]
        for seed in range(3):
            place(models, seed, False)
        ours, theirs = (future.result() for future in both)
        assert all(one.equal(another) for one, another in zip(ours, theirs, strict=True))
        assert drawn(other, drawing(NAME)).equal(drawn(server, drawing(NAME)))
