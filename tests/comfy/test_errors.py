"""Every mistake ends at the node where it was made, in one sentence that says what to do."""

import json
import math

import graphs
import pytest
import torch
from graphs import GOLDEN_FILE, MICRO_FILE, PROMPT, TINY, Graph, assert_sentence, failure, golden, parts, tiny
from safetensors.torch import save_file

from janusflow_core.layout import describe_files, save_folder, save_single

TOO_LARGE = ["prompt and picture need 65552", "model's context holds 1024", "make them shorter or smaller"]


@pytest.fixture(scope="module", autouse=True)
def stocked(server):
    graphs.stock(server.base / "models")


@pytest.fixture(scope="module")
def broken(server):
    """Names of broken checkpoints in models/checkpoints and models/janusflow, by what is wrong with them."""
    models, micro = server.base / "models", golden.micro()
    checkpoints, good = models / "checkpoints", parts(micro)
    config = micro.model.config

    sdxl = {
        "model.diffusion_model.input_blocks.0.0.weight": torch.zeros(320, 4, 3, 3),
        "first_stage_model.decoder.conv_in.weight": torch.zeros(512, 4, 3, 3),
    }
    save_file(sdxl, checkpoints / "sdxl.safetensors")

    wider = config.model_copy(update={"language": config.language.model_copy(update={"hidden_size": 64})})
    save_single(
        checkpoints / "wider.safetensors",
        **{**good, "parts": describe_files(wider, micro.tokenizer, micro.image_config)},
    )

    whole = (models / "diffusion_models" / MICRO_FILE).read_bytes()
    (checkpoints / "cut.safetensors").write_bytes(whole[: len(whole) // 2])

    metadata = {key: json.dumps(value) for key, value in good["parts"].items()}
    save_file(good["weights"], checkpoints / "speechless.safetensors", metadata)
    save_folder(models / "janusflow" / "speechless", **good)
    (models / "janusflow" / "speechless" / "tokenizer.json").unlink()

    for name, key in (("nan_flow", "vision_gen_dec_aligner.weight"), ("nan_text", "language_model.lm_head.weight")):
        poisoned = good["weights"][key].clone()
        poisoned[0, 0] = float("nan")
        save_single(checkpoints / f"{name}.safetensors", **{**good, "weights": {**good["weights"], key: poisoned}})

    strange = {**good["weights"], "language_model.model.layers.9.mlp.up_proj.weight": torch.zeros(2, 2)}
    save_single(checkpoints / "strange.safetensors", **{**good, "weights": strange})
    hollow = {key: value for key, value in good["weights"].items() if key != "language_model.model.norm.weight"}
    save_single(checkpoints / "hollow.safetensors", **{**good, "weights": hollow})


@pytest.mark.parametrize(("name", "words"), [
    ("sdxl.safetensors", ["sdxl.safetensors", "not a JanusFlow checkpoint", "config", "janusflow convert"]),
    ("wider.safetensors", ["wider.safetensors", "input_layernorm.weight", "[32]", "[64]"]),
    ("cut.safetensors", ["cut.safetensors", "cut short", "download"]),
    ("speechless.safetensors", ["speechless", "tokenizer"]),
    ("speechless", ["speechless", "tokenizer.json"]),
    ("nan_flow.safetensors", ["nan_flow.safetensors", "vision_gen_dec_aligner.weight", "NaN"]),
    ("nan_text.safetensors", ["nan_text.safetensors", "language_model.lm_head.weight", "NaN"]),
    ("strange.safetensors", ["strange.safetensors", "layers.9.mlp.up_proj.weight", "not part of JanusFlow"]),
    ("hollow.safetensors", ["hollow", "language_model.model.norm.weight", "missing", "[32]"]),
])  # fmt: skip
def test_a_bad_checkpoint_is_named(server, broken, name, words):
    graph = Graph()
    loaded = graph.load(name)
    graph.save(graph.flow(loaded, graph.encode(loaded), width=32, height=32))
    failure(server, graph, "JanusFlowLoader", *words)


def test_a_checkpoint_that_is_gone_is_refused_before_the_run(server):
    graph = Graph()
    loaded = graph.load("gone.safetensors")
    graph.save(graph.flow(loaded, graph.encode(loaded)))
    with pytest.raises(RuntimeError, match="JanusFlowLoader.*gone.safetensors"):
        server.run(graph.prompt)


def test_a_checkpoint_without_vae_asks_for_one(server):
    graph = Graph()
    loaded = graph.load(GOLDEN_FILE, vae="from checkpoint")
    sampled = graph.flow(loaded, graph.encode(loaded), width=32, height=32)
    graph.add("SaveImage", images=graph.add("VAEDecode", samples=sampled, vae=loaded[2]), filename_prefix="x")
    failure(server, graph, "JanusFlowLoader", "golden", "VAE", "models/vae", "none")


def test_a_vae_that_is_none_is_told_where_pixels_are_wanted(server):
    graph = Graph()
    loaded = graph.load(TINY, vae="none")
    sampled = graph.flow(loaded, graph.encode(loaded), steps=1)
    decoded = graph.add("JanusFlowVAEDecode", samples=sampled, vae=loaded[2], longest_side=0)
    graph.add("SaveImage", images=decoded, filename_prefix="x")
    failure(server, graph, "JanusFlowVAEDecode", "VAE", "Load JanusFlow")


def test_a_file_that_is_no_vae_is_named(server):
    save_file({"encoder.x": torch.zeros(1)}, server.base / "models" / "vae" / "no_vae.safetensors")
    graph = Graph()
    loaded = graph.load(TINY, vae="no_vae.safetensors")
    graph.save(graph.flow(loaded, graph.encode(loaded), steps=1))
    failure(server, graph, "JanusFlowLoader", "no_vae.safetensors", "decoder")


def test_an_empty_prompt_is_refused(server):
    graph = Graph()
    loaded = graph.load()
    graph.save(graph.flow(loaded, graph.encode(loaded, "  \n")))
    failure(server, graph, "JanusFlowEncodePrompt", "prompt is empty", "CLIP Text Encode")


def test_an_empty_question_is_refused(server):
    graph = Graph()
    loaded = graph.load()
    image = graph.add("EmptyImage", width=32, height=32, batch_size=1, color=0)
    graph.show(graph.describe(loaded[1], image, " "))
    failure(server, graph, "JanusFlowDescribe", "question is empty")


@pytest.mark.parametrize("sampler", ["KSampler", "JanusFlowSampler"])
def test_a_prompt_of_another_model_is_refused(server, sampler):
    graph = Graph()
    model, other = graph.load(TINY), graph.load(GOLDEN_FILE)
    encoded = graph.encode(other)
    if sampler == "KSampler":
        graph.save(graph.ksampler(model, encoded[0], encoded[1]))
    else:
        graph.save(graph.flow(model, encoded))
    failure(server, graph, sampler, "96", "192", "same Load JanusFlow")


@pytest.mark.parametrize("node", ["JanusFlowDescribe", "TextGenerate"])
def test_more_words_than_the_context_holds_are_refused(server, node):
    graph = Graph()
    loaded = graph.load()
    image = graph.add("EmptyImage", width=32, height=32, batch_size=1, color=0)
    if node == "TextGenerate":
        graph.show(graph.generate_text(loaded[1], "What is it?", 2048, image=image))
    else:
        graph.show(graph.describe(loaded[1], image, tokens=2048))
    failure(server, graph, node, "2048", "model's context holds 1024", "max_new_tokens", "make them shorter")


@pytest.mark.parametrize("node", ["JanusFlowEncodePrompt", "CLIPTextEncode"])
def test_a_prompt_beyond_the_context_is_refused(server, node):
    graph = Graph()
    loaded = graph.load()
    graph.show(graph.add(node, clip=loaded[1], text="word " * 20_000))
    failure(server, graph, node, "prompt and picture", "model's context holds 1024", "make them shorter")


@pytest.mark.parametrize("sampler", ["KSampler", "JanusFlowSampler"])
def test_a_picture_beyond_the_context_is_refused(server, sampler):
    """4096 x 4096 pixels are 65,536 tokens: attention over them would ask for 17 GB."""
    graph = Graph()
    loaded = graph.load()
    encoded = graph.encode(loaded)
    if sampler == "KSampler":
        graph.save(graph.ksampler(loaded, encoded[0], encoded[1], graph.empty(4096, 4096)))
    else:
        graph.save(graph.flow(loaded, encoded, width=4096, height=4096))
    failure(server, graph, sampler, *TOO_LARGE)


def test_the_library_says_the_same_of_a_picture_beyond_the_context():
    with pytest.raises(ValueError) as caught:
        tiny().generate(PROMPT, width=4096, height=4096)
    assert_sentence(str(caught.value), *TOO_LARGE)


def test_a_size_between_two_tokens_is_refused_with_a_better_one(server):
    graph = Graph()
    loaded = graph.load()
    graph.save(graph.flow(loaded, graph.encode(loaded), width=100))
    failure(server, graph, "JanusFlowSampler", "width", "100", "multiple of 16", "96")


# --- what no wire in the editor can carry, but another pack may -------------------------------------------------


def test_models_of_other_kinds_are_refused(pack):
    """An SDXL model in our nodes."""
    sdxl_model, sdxl_clip = pack.sdxl()
    describe, encode, sampler = (pack.node(name) for name in ("describe", "encode", "sample"))
    image = torch.zeros(1, 8, 8, 3)
    for words, call in [
        (
            ["Describe Image", "CLIP", "Load JanusFlow"],
            lambda: describe(sdxl_clip, image, "What?", 4, {"mode": "greedy"}),
        ),
        (["Encode Prompt", "CLIP", "Load JanusFlow"], lambda: encode(sdxl_clip, "a red circle")),
        (["Flow Sampler", "MODEL", "KSampler"], lambda: sampler(sdxl_model, [], [], 0, 1, 1.0, 0, 0, 1)),
    ]:
        with pytest.raises(ValueError) as caught:
            call()
        assert_sentence(str(caught.value), *words)


@pytest.mark.parametrize("shape", [(8, 8, 3), (1, 1, 8, 8, 3), (0, 8, 8, 3), (1, 0, 8, 3)])
def test_pictures_of_a_wrong_rank_are_refused(pack, shape):
    with pytest.raises(ValueError) as caught:
        pack.node("describe")(pack.tiny[1], torch.zeros(shape), "What?", 4, {"mode": "greedy"})
    assert_sentence(str(caught.value), "Describe Image", str(shape), "(batch, height, width, channels)")


@pytest.mark.parametrize("image", [None, "x", 5, [torch.zeros(1, 8, 8, 3)]])
@pytest.mark.parametrize("node", ["describe", "turn"])
def test_what_is_no_picture_is_refused(pack, node, image):
    if node == "turn" and image is None:
        pytest.skip("a turn without a picture is a turn")
    call = pack.node(node)
    with pytest.raises(ValueError) as caught:
        if node == "describe":
            call(pack.tiny[1], image, "What?", 4, {"mode": "greedy"})
        else:
            call("What?", image=image)
    assert_sentence(str(caught.value), "expected (batch, height, width, channels)", "connect an IMAGE output")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_pictures_of_no_numbers_are_refused(pack, value):
    with pytest.raises(ValueError) as caught:
        pack.node("describe")(pack.tiny[1], torch.full((1, 8, 8, 3), value), "What?", 4, {"mode": "greedy"})
    assert_sentence(str(caught.value), "NaN or infinite values", "expected 0 to 1")


@pytest.mark.parametrize("shape", [(0, 4, 8, 8), (1, 4, 0, 8), (1, 5, 8, 8), (4, 8, 8)])
@pytest.mark.parametrize("node", ["sample", "decode"])
def test_latents_of_nothing_are_refused(pack, node, shape):
    model, clip, vae = pack.tiny
    latent = {"samples": torch.ones(shape)}
    with pytest.raises(ValueError) as caught, torch.inference_mode():
        if node == "decode":
            pack.node(node)(latent, vae)
        else:
            pack.node(node)(model, *pack.node("encode")(clip, PROMPT), 0, steps=1, latent=latent)
    assert_sentence(str(caught.value), f"The latent has shape {shape}", "(batch, 4, height, width)")
