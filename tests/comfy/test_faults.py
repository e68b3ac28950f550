"""Files and values made to break a server: each is refused in one sentence, and the server goes on drawing."""

import itertools
import json
import math
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import graphs
import pytest
import torch
from graphs import TINY, Graph, failure, golden, parts, tiny
from inprocess import load_pack

from janusflow_core.autoencoder import VAEConfig
from janusflow_core.layout import save_folder, save_single
from janusflow_core.partial import PARTIAL

SEEDS = itertools.count(1000)
NORM = "language_model.model.norm.weight"
KEY = "decoder.conv_in.weight"


@pytest.fixture(scope="module")
def models(server) -> Path:
    graphs.stock(server.base / "models")
    return server.base / "models"


@pytest.fixture(autouse=True)
def still_drawing(server, models):
    """After each of these tests a picture is drawn that no cache holds."""
    yield
    graph = Graph()
    loaded = graph.load()
    graph.save(graph.flow(loaded, graph.encode(loaded), seed=next(SEEDS), steps=1))
    graph.run(server)


def refused(server, name: str, node: str = "JanusFlowLoader", words: tuple[str, ...] = (), **load: Any) -> None:
    graph = Graph()
    loaded = graph.load(name, **load)
    graph.save(graph.flow(loaded, graph.encode(loaded), width=32, height=32, steps=1))
    failure(server, graph, node, *words)


def altered_tokenizer(**changed: Any) -> str:
    return json.dumps({**json.loads(golden.micro_tokenizer().json), **changed})


def sparse_vocabulary() -> str:
    model = json.loads(golden.micro_tokenizer().json)["model"]
    model["vocab"] = {token: number + 5000 * (number > 300) for token, number in model["vocab"].items()}
    return altered_tokenizer(model=model)


def weights(**changed: torch.Tensor) -> dict[str, torch.Tensor]:
    return {**golden.micro().model.state_dict(), **changed}


def sizes(section: str, **changed: Any) -> dict[str, Any]:
    """The JSON parts of the micro model, its config.json with other numbers."""
    described = parts(golden.micro())["parts"]
    values = dict(described["config"][section])
    values = {**values, "params": {**values["params"], **changed}} if "params" in values else {**values, **changed}
    return {**described, "config": {**described["config"], section: values}}


EMPTY = {"type": "Replace", "pattern": {"String": ""}, "content": "x"}
PRECOMPILED = {"type": "Precompiled", "precompiled_charsmap": ""}
# What differs from a good checkpoint, and words of the refusal.
ATTACKS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "panic_at_load": (
        {"tokenizer_json": altered_tokenizer(normalizer=PRECOMPILED)},
        ("tokenizer.json is broken", "cannot be read", "copy the file again"),
    ),
    "panic_at_encode": (
        {"tokenizer_json": altered_tokenizer(normalizer=EMPTY)},
        ("tokenizer.json is broken", "cannot encode this text"),
    ),
    "sparse_ids": ({"tokenizer_json": sparse_vocabulary()}, ("sparse_ids", "ids go up to", "table")),
    **{
        name: ({"parts": sizes(section, **changed)}, (name, words))
        for name, section, changed, words in (
            ("layers", "language_config", {"num_hidden_layers": 10**6}, "num_hidden_layers 1000000"),
            ("vision_layers", "vision_und_enc_config", {"layers": 10**6}, "layers 1000000"),
            ("flow_layers", "vision_gen_enc_config", {"layers_in_middle": 10**6}, "encoder_layers 1000000"),
            ("wide", "language_config", {"intermediate_size": 2**60}, f"intermediate_size {2**60}"),
        )
    },
    **{
        name: ({"weights": weights(**{NORM: torch.ones(32, dtype=dtype)})}, (f"{name}.safetensors", NORM, kind))
        for name, dtype, kind in (
            ("int8", torch.int8, "int8, expected floating point"),
            ("complex", torch.complex64, "complex64, expected floating point"),
        )
    },
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_file_that_attacks_is_refused(server, models, name):
    changed, words = ATTACKS[name]
    save_single(models / "checkpoints" / f"{name}.safetensors", **{**parts(golden.micro()), **changed})
    node = "JanusFlowEncodePrompt" if name == "panic_at_encode" else "JanusFlowLoader"
    refused(server, f"{name}.safetensors", node, words)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("incomplete", ("the VAE lacks", KEY, "not saved whole")),
        ("nan", (KEY, "NaN")),
        ("misshapen", (KEY, "has shape", "expected")),
        ("deep", ("the VAE lacks", "expected shape")),
    ],
)
def test_a_vae_that_would_decode_garbage_is_refused(server, models, name, words):
    whole = tiny().codec.autoencoder
    conv = whole.weights[KEY]
    without = {key: value for key, value in whole.weights.items() if key != KEY}
    vae = {
        "incomplete": replace(whole, weights=without),
        "nan": replace(whole, weights={**without, KEY: torch.full_like(conv, math.nan)}),
        "misshapen": replace(whole, weights={**without, KEY: conv[..., :1].contiguous()}),
        "deep": replace(whole, config=VAEConfig(block_out_channels=(64,) * 4, layers_per_block=10**6)),
    }[name]
    save_single(models / "checkpoints" / f"vae_{name}.safetensors", **parts(golden.micro()), vae=vae)
    refused(server, f"vae_{name}.safetensors", words=words, vae="from checkpoint")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names are Unicode")
def test_a_file_whose_name_is_no_unicode_is_refused(server, models):
    """Half a surrogate pair in a message would kill the server's logging, and with it the thread that runs prompts."""
    name = os.fsdecode(b"caf\xe9.safetensors")
    save_single(models / "plain.safetensors", **parts(golden.micro()))
    (models / "plain.safetensors").rename(models / "checkpoints" / name)
    refused(server, name, words=("caf\\udce9.safetensors", "no valid Unicode", "rename"))
    (models / "checkpoints" / name).unlink()


def test_a_shard_whose_name_is_no_unicode_is_refused(server, models):
    folder = models / "janusflow" / "sharded"
    save_folder(folder, **parts(golden.micro()))
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "\\ud800.safetensors"}}')
    refused(server, "sharded", words=("sharded lacks \\ud800.safetensors", "download it again"))


@pytest.mark.parametrize("name", ["cfg", "shift"])
def test_what_is_no_number_is_refused(server, name):
    """JSON as Python reads it may say NaN, which passes the bounds of a widget."""
    graph = Graph()
    loaded = graph.load()
    graph.save(graph.flow(loaded, graph.encode(loaded), **{name: math.nan}))
    failure(server, graph, "JanusFlowSampler", name, "nan", "must be a number")


def test_what_a_killed_conversion_leaves_is_not_offered(server, models):
    for folder in ("janusflow", "checkpoints"):
        save_folder(models / folder / f"{PARTIAL}x7" / "new", **parts(golden.micro()))
    offered = server.object_info("JanusFlowLoader")["JanusFlowLoader"]["input"]["required"]["checkpoint"]
    assert TINY in str(offered) and PARTIAL not in str(offered)


def test_loading_can_be_cancelled():
    pack = load_pack()
    compat = pack.module("nodes.native.compat")
    compat.model_management.interrupt_current_processing(True)
    with pytest.raises(compat.model_management.InterruptProcessingException), torch.inference_mode():
        pack.node("load")(TINY, "none", "fp32")
