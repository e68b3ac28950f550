"""Workflows edited by hand, absurd values, inputs of another kind: one sentence each, and the server goes on."""

import itertools
import math
import time
from collections.abc import Callable
from typing import Any

import graphs
import psutil
import pytest
import torch
from graphs import GOLDEN_FILE, Graph, Node, assert_sentence, tiny
from PIL import Image
from safetensors.torch import save_file

SEEDS = itertools.count(5000)
ONE, LONG = "one_pixel.png", "very_wide.png"
LAYER = "language_model.model.layers.0.mlp.up_proj"
SAMPLER, ENCODE, DESCRIBE, DECODE = (
    "JanusFlowSampler",
    "JanusFlowEncodePrompt",
    "JanusFlowDescribe",
    "JanusFlowVAEDecode",
)
REFUSED, FINE = "refused", "fine"  # by ComfyUI before anything runs; nothing is wrong with it
Build = Callable[[Graph], Any]


def flow(**changed: Any) -> Build:
    """A drawing of other values."""

    def build(graph: Graph) -> None:
        loaded = graph.load()
        graph.save(graph.flow(loaded, graph.encode(loaded), **{"steps": 1, "seed": next(SEEDS), **changed}))

    return build


def drawn_from(kind: str, **inputs: Any) -> Build:
    """A drawing that starts from a latent of another node."""
    return lambda graph: flow(latent=graph.add(kind, batch_size=1, **inputs))(graph)


def prompt(text: Any) -> Build:
    def build(graph: Graph) -> None:
        loaded = graph.load()
        graph.save(graph.flow(loaded, graph.encode(loaded, text), steps=1))

    return build


def question(text: Any, picture: Any = ONE) -> Build:
    def build(graph: Graph) -> None:
        graph.show(graph.describe(graph.load()[1], graph.add("LoadImage", image=picture), text))

    return build


def asked(kind: str, **inputs: Any) -> Build:
    """One of the nodes that ask about pictures."""

    def build(graph: Graph) -> None:
        shown = {"image": graph.add("LoadImage", image=ONE), "pictures": "one by one", "question": "What?"}
        graph.show(graph.add(kind, clip=graph.load()[1], **shown, **inputs))

    return build


def decoded(kind: str, longest_side: int = 0, **inputs: Any) -> Build:
    """Another node's latent decoded as a picture."""

    def build(graph: Graph) -> None:
        vae = graph.load(vae="from checkpoint")[2]
        picture = graph.add(DECODE, samples=graph.add(kind, batch_size=1, **inputs), vae=vae, longest_side=longest_side)
        graph.add("PreviewImage", images=picture)

    return build


def patched(kind: str, **inputs: Any) -> Build:
    """A drawing by a model that another node has changed."""

    def build(graph: Graph) -> None:
        loaded = graph.load()
        graph.save(graph.flow(graph.add(kind, model=loaded, **inputs), graph.encode(loaded), steps=1))

    return build


def loaded_as(checkpoint: Any, **changed: Any) -> Build:
    def build(graph: Graph) -> None:
        loaded = graph.load(checkpoint, **changed)
        graph.save(graph.flow(loaded, graph.encode(loaded)))

    return build


def taught(strength_clip: float) -> Build:
    """A LoRA of NaNs in the half that draws, or in the half that speaks."""

    def build(graph: Graph) -> None:
        loaded = graph.load()
        lora = {"lora_name": "nan.safetensors", "strength_model": 1.0 - strength_clip, "strength_clip": strength_clip}
        model = graph.add("LoraLoader", model=loaded, clip=loaded[1], **lora)
        if strength_clip:
            graph.show(graph.describe(model[1], graph.add("LoadImage", image=ONE)))
        else:
            graph.save(graph.flow(model, graph.encode(model), steps=1))

    return build


def schema(text: str) -> Build:
    return asked("JanusFlowJSON", schema=text, max_new_tokens=64)


def other_picture(kind: str, **inputs: Any) -> Callable[[Graph], Node]:
    return lambda graph: graph.add(kind, **inputs)


def described(picture: Callable[[Graph], Node]) -> Build:
    return lambda graph: graph.show(graph.describe(graph.load()[1], picture(graph)))


def without(name: str) -> Build:
    """A drawing whose node lacks an input."""

    def build(graph: Graph) -> None:
        flow()(graph)
        sampler = next(node for node in graph.prompt.values() if node["class_type"] == SAMPLER)
        del sampler["inputs"][name]

    return build


DEEP = '{"type":"array","items":' * 500 + "{}" + "}" * 500
LATENT = "this VAE decodes pictures"
# name: (the graph, where it ends, words that are said there)
CASES: dict[str, tuple[Build, str, str]] = {
    "steps below 0": (flow(steps=-5), REFUSED, "smaller than min of 0"),
    "steps without end": (flow(steps=10**9), REFUSED, "bigger than max"),
    "steps in words": (flow(steps="many"), REFUSED, "steps, many"),
    "no steps": (flow(steps=None), REFUSED, "steps, None"),
    "steps as a list": (flow(steps=[1]), REFUSED, "Bad linked input"),
    "cfg without limit": (flow(cfg=1e9), REFUSED, "bigger than max"),
    "cfg is no number": (flow(cfg=math.nan), SAMPLER, "cfg is nan, but must be a number"),
    "denoise is no number": (flow(denoise=math.nan), SAMPLER, "denoise is nan"),
    "nothing to denoise": (flow(denoise=0), REFUSED, "smaller than min"),
    "shift without end": (flow(shift=math.inf), REFUSED, "bigger than max"),
    "guided from nowhere": (flow(guidance_start=math.nan), SAMPLER, "guidance must start and end"),
    "rescaled by nothing": (flow(guidance_rescale=math.nan), SAMPLER, "rescaling of guidance"),
    "varied by nothing": (flow(variation_strength=math.nan), SAMPLER, "strength of a variation"),
    "between two tokens": (flow(width=17), SAMPLER, "width is 17 pixels, but must be a multiple of 16"),
    "wide as infinity": (flow(width=1e400), REFUSED, "width, inf"),
    "beyond the context": (flow(width=4096, height=4096), SAMPLER, "model's context holds 1024"),
    "a million at once": (flow(batch_size=10**6), REFUSED, "bigger than max"),
    "a seed below 0": (flow(seed=-1), REFUSED, "smaller than min"),
    "a seed of 65 bits": (flow(seed=2**64), REFUSED, "bigger than max"),
    "the last seed of 64": (flow(seed=2**64 - 1, batch_size=2), FINE, ""),
    "a sampler of no kind": (flow(sampler="rk45"), REFUSED, "Value not in list"),
    "a link to nowhere": (flow(positive=["99", 0]), REFUSED, "99"),
    "a link to no output": (flow(positive=["2", 7]), REFUSED, "out of range"),
    "a text as a prompt": (flow(positive="red"), SAMPLER, "positive is 'red', but must be linked"),
    "a number as a latent": (flow(latent=5), SAMPLER, "latent is '5', but must be linked"),
    "no prompt": (without("positive"), REFUSED, "Required input is missing"),
    "a video to draw on": (drawn_from("EmptyHunyuanLatentVideo", width=64, height=64, length=5), SAMPLER, "The latent"),
    "a sound to draw on": (drawn_from("EmptyLatentAudio", seconds=1.0), SAMPLER, "JanusFlow draws pictures of"),
    "another model's canvas": (drawn_from("EmptySD3LatentImage", width=64, height=64), FINE, ""),
    "the smallest picture": (drawn_from("EmptyLatentImage", width=16, height=16), FINE, ""),
    "100,000 letters": (prompt("word " * 20_000), ENCODE, "the model's context holds 1024"),
    "half a character": (prompt("a\ud800b"), ENCODE, "half a surrogate pair"),
    "nothing but blanks": (prompt(" \n\t"), ENCODE, "The prompt is empty"),
    "controls": (prompt("a \x00\x01\x1b[2J heart"), FINE, ""),
    "all of its tags": (prompt("<image_placeholder> <begin_of_image> <｜end▁of▁sentence｜> a heart"), FINE, ""),
    "the tag of pictures": (prompt("<｜begin▁of▁generation｜>" * 3), FINE, ""),
    "a list of prompts": (prompt(["a", "b", "c"]), REFUSED, "Bad linked input"),
    "a question of 100,000": (question("word " * 20_000), DESCRIBE, "the model's context holds 1024"),
    "a question of halves": (question("a\udc00b"), DESCRIBE, "half a surrogate pair"),
    "more tags than pictures": (question("<image_placeholder>" * 2), DESCRIBE, "expected 1, one per image"),
    "its start tag asked": (question("<begin_of_image>"), DESCRIBE, "expected none"),
    "one pixel": (question("What is it?", ONE), FINE, ""),
    "20,000 x 10 pixels": (question("What is it?", LONG), FINE, ""),
    "a picture elsewhere": (question("What?", "../../../etc/passwd"), REFUSED, "Invalid image file"),
    "a picture that is gone": (question("What?", "gone.png"), REFUSED, "Invalid image file"),
    "a mask as a picture": (
        described(other_picture("SolidMask", value=1.0, width=16, height=16)),
        REFUSED,
        "Return type mismatch",
    ),
    "no options": (asked("JanusFlowChoose", options=""), "JanusFlowChoose", "options must be different texts"),
    "3,000 options": (
        asked("JanusFlowChoose", options="\n".join(f"option {k}" for k in range(3000))),
        "JanusFlowChoose",
        "the model's context holds",
    ),
    "no schema": (schema("{"), "JanusFlowJSON", "not valid JSON"),
    "a list as a schema": (schema("[1]"), "JanusFlowJSON", "expected an object"),
    "a schema elsewhere": (schema('{"$ref": "http://127.0.0.1/x"}'), "JanusFlowJSON", "cannot be followed"),
    "a bottomless schema": (schema(DEEP), "JanusFlowJSON", "cannot be followed"),
    "a schema of itself": (schema('{"$ref": "#"}'), "JanusFlowJSON", "cut off"),
    "a schema of nothing": (schema('{"enum": []}'), "JanusFlowJSON", "cannot be followed"),
    "a pattern that explodes": (schema('{"type": "string", "pattern": "(a+)+$"}'), "JanusFlowJSON", "cut off"),
    "from 5 down to 1": (
        asked("JanusFlowNumber", minimum=5, maximum=1, decimals=0),
        "JanusFlowNumber",
        "must lie between two numbers",
    ),
    "from no number on": (
        asked("JanusFlowNumber", minimum=math.nan, maximum=1, decimals=0),
        "JanusFlowNumber",
        "must lie between two numbers",
    ),
    "a file elsewhere": (loaded_as("../../etc/passwd"), REFUSED, "Value not in list"),
    "a file at the root": (loaded_as("/etc/passwd"), REFUSED, "Value not in list"),
    "a number as a file": (loaded_as(5), REFUSED, "Value not in list"),
    "a VAE that is gone": (loaded_as(GOLDEN_FILE, vae="gone.safetensors"), REFUSED, "Value not in list"),
    "a video to decode": (decoded("EmptyHunyuanLatentVideo", width=64, height=64, length=5), DECODE, LATENT),
    "a sound to decode": (decoded("EmptyLatentAudio", seconds=1.0), DECODE, LATENT),
    "a song to decode": (decoded("EmptyAceStepLatentAudio", seconds=1.0), DECODE, LATENT),
    "another model's latent": (decoded("EmptySD3LatentImage", width=64, height=64), DECODE, LATENT),
    "a line enlarged": (decoded("EmptyLatentImage", longest_side=16, width=1024, height=16), FINE, ""),
    "FreeU": (patched("FreeU", b1=1.1, b2=1.2, s1=0.9, s2=0.2), "FreeU", "changes a U-Net"),
    "FreeU_V2": (patched("FreeU_V2", b1=1.1, b2=1.2, s1=0.9, s2=0.2), "FreeU_V2", "changes a U-Net"),
    "attention replaced": (patched("SelfAttentionGuidance", scale=0.5, blur_sigma=2.0), SAMPLER, "replaces attn1"),
    "RenormCFG": (patched("RenormCFG", cfg_trunc=100, renorm_cfg=1.0), FINE, ""),
    "a LoRA of NaN": (taught(strength_clip=0.0), SAMPLER, "came out as NaN"),
    "a LoRA that says NaN": (taught(strength_clip=1.0), DESCRIBE, "answers with NaN"),
}


def memory(server: Any) -> int:
    return psutil.Process(server._process.pid).memory_info().rss


@pytest.fixture(scope="module", autouse=True)
def stocked(server):
    graphs.stock(server.base / "models")
    (server.base / "input").mkdir(exist_ok=True)
    Image.new("RGB", (1, 1), "red").save(server.base / "input" / ONE)
    Image.new("RGB", (20_000, 10), "red").save(server.base / "input" / LONG)
    rows, columns = tiny().model.get_submodule(LAYER).weight.shape
    lora = {
        f"{half}.{LAYER}.lora_{part}.weight": torch.full(shape, math.nan)
        for half in ("diffusion_model", "text_encoders")
        for part, shape in (("up", (rows, 2)), ("down", (2, columns)))
    }
    (server.base / "models" / "loras").mkdir(exist_ok=True)
    save_file(lora, server.base / "models" / "loras" / "nan.safetensors")


@pytest.mark.parametrize("name", CASES)
def test_a_bad_graph_ends_in_one_sentence(server, record_property, name):
    build, where, words = CASES[name]
    build(graph := Graph())
    before, began = memory(server), time.monotonic()
    if where == REFUSED:
        with pytest.raises(RuntimeError) as refused:
            server.run(graph.prompt)
        said = str(refused.value)
        assert "validation" in said and words in said and "Traceback" not in said
    else:
        result = server.run(graph.prompt, timeout=60)
        said = (result.error or {}).get("exception_message", "").strip()
        assert (result.error or {}).get("node_type", FINE) == where, said
        if where != FINE:
            assert_sentence(said, words)
    record_property("message", said)
    assert time.monotonic() - began < 30 and memory(server) - before < 600e6


def test_the_server_still_draws_after_all_of_them(server):
    flow()(graph := Graph())
    assert server.run(graph.prompt).status == "success"
