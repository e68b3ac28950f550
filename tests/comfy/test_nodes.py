"""Our nodes and ComfyUI's own, in a real server: the same pictures and words as the core library gives."""

import graphs
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, AutoencoderTiny
from graphs import (
    GOLDEN_FILE,
    GOLDEN_FOLDER,
    LEFT_RIGHT,
    MICRO_FILE,
    PROMPT,
    SCALE,
    STARS,
    TINY,
    Graph,
    golden,
    previews,
    relative,
    tiny,
)
from PIL import Image
from safetensors.torch import load_file, save_file

from janusflow_core.autoencoder import VAEConfig, load_vae_files
from janusflow_core.device import has_compiler
from janusflow_core.drawing import DrawingConfig
from janusflow_core.image import from_tensor, pixels
from janusflow_core.layout import describe_files, save_single
from janusflow_core.vae import LatentCodec

SDXL = VAEConfig(block_out_channels=(128, 256, 512, 512), layers_per_block=2)
OUR_NODES = ("JanusFlowLoader", "JanusFlowEncodePrompt", "JanusFlowSampler", "JanusFlowVAEDecode", "JanusFlowDescribe")


@pytest.fixture(scope="module", autouse=True)
def stocked(server):
    graphs.stock(server.base / "models")


def drawn(pipe, prompt=PROMPT, **changed):
    """What the core library draws, at the model's scale."""
    options = {"steps": 4, "guidance": 2.0, "solver": "euler", "seed": 7, "output": "latent"}
    return pipe.generate(prompt, **options | changed)


# --- words to pictures ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpoint", [TINY, GOLDEN_FILE])
@pytest.mark.parametrize(("steps", "cfg"), [(4, 2.0), (3, 1.0), (2, 5.0)])
def test_flow_sampler_draws_what_the_library_draws(server, checkpoint, steps, cfg):
    graph = Graph()
    loaded = graph.load(checkpoint)
    sampled = graph.flow(loaded, graph.encode(loaded), steps=steps, cfg=cfg, width=96, height=64)
    pipe = tiny() if checkpoint == TINY else golden.pipeline()
    expected = drawn(pipe, steps=steps, guidance=cfg, width=96, height=64)
    assert relative(graph.latents(server, sampled)[0], expected) <= 1e-4


def test_no_size_means_the_trained_size(server):
    graph = Graph()
    loaded = graph.load()
    assert relative(graph.latents(server, graph.flow(loaded, graph.encode(loaded)))[0], drawn(tiny())) <= 1e-4


def test_what_the_widgets_leave_to_the_checkpoint_is_its_own(server):
    graph = Graph()
    loaded = graph.load()
    encoded = graph.encode(loaded)
    own, none = (graph.flow(loaded, encoded, steps=0, cfg=cfg, sampler="auto") for cfg in (-1.0, 0.0))
    found, unguided = graph.latents(server, own, none)
    assert relative(found, tiny().generate(PROMPT, seed=7, output="latent")) <= 1e-4
    assert relative(unguided, tiny().generate(PROMPT, seed=7, guidance=0.0, output="latent")) <= 1e-4


@pytest.mark.parametrize("solver", ["euler", "heun", "ab2", "dpmpp_2m", "renoise"])
def test_auto_is_the_checkpoints_own_solver(server, solver):
    pipe = golden.micro()
    own = DrawingConfig(steps=5, guidance=3.0, solver=solver, width=48, height=32)
    parts = describe_files(pipe.model.config, pipe.tokenizer, pipe.image_config, own)
    save_single(server.base / "models/checkpoints" / f"{solver}.safetensors", **graphs.parts(pipe, parts=parts))
    graph = Graph()
    loaded = graph.load(f"{solver}.safetensors")
    sampled = graph.flow(loaded, graph.encode(loaded), steps=0, cfg=-1.0, sampler="auto")
    expected = pipe.generate(PROMPT, steps=5, guidance=3.0, solver=solver, width=48, height=32, seed=7, output="latent")
    assert relative(graph.latents(server, sampled)[0], expected) <= 1e-4


@pytest.mark.parametrize(
    ("kind", "area"),
    [
        ("ConditioningSetArea", {"width": 256, "height": 512, "x": 0, "y": 0}),
        ("ConditioningSetAreaPercentage", {"width": 0.25, "height": 1.0, "x": 0.0, "y": 0.0}),
    ],
)
def test_a_prompt_for_a_part_needs_context_for_that_part_alone(server, kind, area):
    """All of 1024 x 512 pixels would be 2,049 tokens, more than janusflow-tiny holds."""
    graph = Graph()
    loaded = graph.load()
    encoded = graph.encode(loaded)
    sides = [graph.add(kind, conditioning=encoded[side], strength=1.0, **area) for side in (0, 1)]
    (found,) = graph.latents(server, graph.ksampler(loaded, *sides, graph.empty(1024, 512), steps=1))
    assert found.shape == (1, 4, 64, 128) and found[..., :32].isfinite().all()


@pytest.mark.parametrize("steps", [4, 13, 30])
def test_ksampler_draws_what_the_library_draws(server, steps):
    graph = Graph()
    loaded = graph.load()
    encoded = graph.encode(loaded)
    sampled = graph.ksampler(loaded, encoded[0], encoded[1], steps=steps)
    assert relative(graph.latents(server, sampled)[0], drawn(tiny(), steps=steps)) <= 1e-3


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_custom_sampling_draws_what_the_library_draws(server, cfg):
    graph = Graph()
    loaded = graph.load()
    encoded = graph.encode(loaded)
    if cfg == 1.0:
        guider = graph.add("BasicGuider", model=loaded, conditioning=encoded)
    else:
        guider = graph.add("CFGGuider", model=loaded, positive=encoded[0], negative=encoded[1], cfg=cfg)
    sampled = graph.add(
        "SamplerCustomAdvanced",
        noise=graph.add("RandomNoise", noise_seed=7),
        guider=guider,
        sampler=graph.add("KSamplerSelect", sampler_name="euler"),
        latent_image=graph.empty(96, 96),
        sigmas=graph.add("BasicScheduler", model=loaded, scheduler="simple", steps=4, denoise=1.0),
    )
    out, denoised = graph.latents(server, sampled[0], sampled[1])
    assert relative(out, drawn(tiny(), guidance=cfg)) <= 1e-3
    assert relative(denoised, out) <= 1e-3  # at the last step the picture is what the flow was heading for


@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2m", "uni_pc", "res_multistep", "euler_ancestral", "renoise"])
def test_every_solver_of_flow_sampler_draws(server, sampler):
    graph = Graph()
    loaded = graph.load()
    encoded = graph.encode(loaded)
    plain, other = graph.latents(
        server, graph.flow(loaded, encoded, steps=12), graph.flow(loaded, encoded, steps=12, sampler=sampler)
    )
    assert other.isfinite().all() and relative(other, plain) > 1e-4 and 0.3 < other.std() < 3 * plain.std()
    if sampler in ("heun", "renoise"):
        assert relative(other, drawn(tiny(), steps=12, solver=sampler)) <= 1e-4


@pytest.mark.skipif(not has_compiler(), reason="torch.compile needs a C++ compiler")
def test_compiled_by_core_s_node_it_draws_the_same(server):
    """Prompts of other lengths too, one after the other, with the same compiled model."""
    drawn = {}
    for text in ("a red circle", PROMPT, "a heart"):
        graph = Graph()
        loaded = graph.load(MICRO_FILE)
        compiled = graph.add("TorchCompileModel", model=loaded, backend="inductor")
        models = {"plain": loaded, "compiled": compiled}
        sampled = [graph.flow(model, graph.encode(loaded, text), width=32, height=32) for model in models.values()]
        plain, found = graph.latents(server, *sampled)
        assert relative(found, plain) <= 1e-4
        drawn[text] = plain
    assert all(relative(drawn["a heart"], drawn[text]) > 1e-3 for text in ("a red circle", PROMPT))


def test_shift_spends_steps_near_the_noise(server):
    graph = Graph()
    loaded = graph.load()
    encoded = graph.encode(loaded)
    shifted = graph.flow(loaded, encoded, shift=3.0)
    moved = graph.add("ModelSamplingSD3", model=loaded, shift=3.0)
    native = graph.ksampler(moved, encoded[0], encoded[1])
    plain = graph.flow(loaded, encoded)
    ours, theirs, unshifted = graph.latents(server, shifted, native, plain)
    assert relative(ours, theirs) <= 1e-3 and relative(ours, unshifted) > 1e-2


def test_clip_text_encode_gives_what_encode_prompt_gives(server):
    graph = Graph()
    loaded = graph.load()
    encoded = graph.encode(loaded)
    positive, empty = graph.clip_text(loaded, PROMPT), graph.clip_text(loaded, "")
    zeroed = graph.add("ConditioningZeroOut", conditioning=positive)
    mixed = graph.latents(
        server,
        graph.ksampler(loaded, encoded[0], encoded[1]),
        graph.ksampler(loaded, positive, empty),
        graph.ksampler(loaded, positive, zeroed),
        graph.ksampler(loaded, empty, empty),
    )
    assert torch.equal(mixed[0], mixed[1]) and torch.equal(mixed[0], mixed[2])
    assert relative(mixed[3], mixed[0]) > 1e-2  # the prompt matters


def test_a_negative_prompt_replaces_the_empty_one(server):
    graph = Graph()
    loaded = graph.load()
    encoded = graph.encode(loaded, negative="three green stars")
    found, core = (
        graph.latents(server, graph.flow(loaded, encoded))[0],
        drawn(tiny(), negative_prompt="three green stars"),
    )
    assert relative(found, core) <= 1e-4 and relative(found, drawn(tiny())) > 1e-2


def test_prompts_of_two_lengths_share_a_batch(server):
    graph = Graph()
    loaded = graph.load()
    short, long, empty = (graph.clip_text(loaded, text) for text in ("a heart", PROMPT, ""))
    both = graph.add("ConditioningCombine", conditioning_1=short, conditioning_2=long)
    combined, one, other = graph.latents(
        server, *(graph.ksampler(loaded, cond, empty, steps=1, cfg=1.0) for cond in (both, short, long))
    )
    assert relative(combined, (one + other) / 2) <= 1e-4 and relative(one, other) > 1e-3


@pytest.mark.parametrize(("sampler", "rounding"), [("euler", 1e-4), ("renoise", 5e-3)])  # of four coarse steps
def test_picture_k_of_a_seed_equals_its_own_run(server, sampler, rounding):
    graph = Graph()
    loaded = graph.load()
    encoded = graph.encode(loaded)
    batch, *alone = graph.latents(
        server,
        graph.flow(loaded, encoded, batch_size=3, seed=2**64 - 2, sampler=sampler),
        *(graph.flow(loaded, encoded, seed=seed, sampler=sampler) for seed in (2**64 - 2, 2**64 - 1, 0)),
    )
    for row, single in zip(batch, alone, strict=True):
        assert relative(row[None], single) <= rounding
    assert relative(batch[:1], batch[1:2]) > 0.1


def test_image_to_image_goes_half_the_way(server, uploaded):
    graph = Graph()
    loaded = graph.load(vae="from checkpoint")
    latent = graph.add("VAEEncode", pixels=graph.add("LoadImage", image=uploaded[0]), vae=loaded[2])
    encoded = graph.encode(loaded, "three green stars")
    half = graph.flow(loaded, encoded, latent=latent, denoise=0.5)
    native = graph.ksampler(loaded, encoded[0], encoded[1], latent, denoise=0.5)
    found, theirs, start = graph.latents(server, half, native, latent)
    # Two autoencoders of their own agree to 2e-4; the flow itself adds nothing to it.
    assert relative(start, tiny().codec.encode(pixels(LEFT_RIGHT)[None])) <= 1e-3
    expected = drawn(tiny(), "three green stars", init_image=LEFT_RIGHT, strength=0.5)
    assert relative(found, expected) <= 1e-3 and relative(theirs, expected) <= 1e-3
    assert 0.02 < relative(found, start) < relative(drawn(tiny(), "three green stars"), start)


def test_a_noise_mask_keeps_the_other_half(server, uploaded):
    graph = Graph()
    loaded = graph.load(vae="from checkpoint")
    latent = graph.add("VAEEncode", pixels=graph.add("LoadImage", image=uploaded[0]), vae=loaded[2])
    whole, right = (graph.add("SolidMask", value=float(width == 48), width=width, height=96) for width in (96, 48))
    mask = graph.add("MaskComposite", destination=whole, source=right, x=48, y=0, operation="add")
    masked = graph.add("SetLatentNoiseMask", samples=latent, mask=mask)
    encoded = graph.encode(loaded)
    ours = graph.flow(loaded, encoded, latent=masked)
    native = graph.ksampler(loaded, encoded[0], encoded[1], masked)
    found, theirs, start = graph.latents(server, ours, native, latent)
    for sampled in (found, theirs):
        assert relative(sampled[..., :6], start[..., :6]) <= 1e-5
        assert relative(sampled[..., 6:], start[..., 6:]) > 0.1
    picture = Image.new("L", (96, 96))
    picture.paste(255, (48, 0, 96, 96))
    assert relative(found, drawn(tiny(), init_image=LEFT_RIGHT, mask=picture)) <= 1e-3


@pytest.mark.parametrize("differential", [False, True])
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "renoise"])
def test_a_soft_mask_paints_what_the_library_paints(server, uploaded, tmp_path, differential, sampler):
    grey = Image.linear_gradient("L").rotate(90).resize((96, 96))
    graph = Graph()
    loaded = graph.load(vae="from checkpoint")
    latent = graph.add("VAEEncode", pixels=graph.add("LoadImage", image=uploaded[0]), vae=loaded[2])
    mask = graph.add("LoadImageMask", image=graphs.upload(server, tmp_path, grey.convert("RGB"))[0], channel="red")
    masked = graph.add("SetLatentNoiseMask", samples=latent, mask=mask)
    encoded = graph.encode(loaded, "three green stars")
    model = graph.add("DifferentialDiffusion", model=loaded, strength=1.0) if differential else loaded
    sampled = graph.flow(model, encoded, latent=masked, sampler=sampler, steps=6, denoise=0.8)
    options = {"init_image": LEFT_RIGHT, "mask": grey, "strength": 0.8, "steps": 6, "solver": sampler}
    expected = drawn(tiny(), "three green stars", differential=differential, **options)
    other = drawn(tiny(), "three green stars", differential=not differential, **options)
    found = graph.latents(server, sampled)[0]
    assert relative(found, expected) <= 1e-3 < relative(found, other)


@pytest.mark.parametrize(
    "changed",
    [
        {"guidance_start": 0.3, "guidance_end": 0.7},
        {"guidance_rescale": 0.7},
        {"cfg_zero_star": True},
        {"cfg_zero_star": True, "guidance_rescale": 0.5, "guidance_start": 0.2, "shift": 2.0, "steps": 7},
        {"variation_seed": 21, "variation_strength": 0.4},
    ],
)
def test_further_settings_draw_what_the_library_draws(server, changed):
    graph = Graph()
    loaded = graph.load()
    encoded = graph.encode(loaded)
    options = {"steps": 5, "cfg": 5.0, **changed}
    plain, sampled = graph.flow(loaded, encoded, steps=5, cfg=5.0), graph.flow(loaded, encoded, batch_size=2, **options)
    before, found = graph.latents(server, plain, sampled)
    expected = drawn(tiny(), num_images=2, guidance=options.pop("cfg"), **options)
    assert relative(found, expected) <= 1e-3 < relative(found[:1], before)


@pytest.mark.parametrize(("width", "height"), [(104, 96), (72, 136), (24, 16)])
def test_latents_of_odd_size_are_drawn(server, width, height):
    graph = Graph()
    loaded = graph.load()
    encoded = graph.encode(loaded)
    latent = graph.empty(width, height)
    for sampled in graph.latents(
        server, graph.flow(loaded, encoded, latent=latent), graph.ksampler(loaded, encoded[0], encoded[1], latent)
    ):
        assert sampled.shape == (1, 4, height // 8, width // 8) and sampled.isfinite().all() and sampled.std() > 0.1


# --- pictures to words ------------------------------------------------------------------------------------------


def test_each_picture_of_a_batch_gets_its_answer(server, uploaded):
    graph = Graph()
    loaded = graph.load()
    first, second = (graph.add("LoadImage", image=name) for name in uploaded)
    batch = graph.add("ImageBatch", image1=first, image2=second)
    answers, alone = graph.texts(server, graph.describe(loaded[1], batch), graph.describe(loaded[1], second))
    expected = [tiny().describe(picture, max_new_tokens=8) for picture in (LEFT_RIGHT, STARS)]
    assert answers == expected and alone == expected[1:]


def test_text_generate_answers_like_describe(server, uploaded):
    question = "What color is the circle?"
    graph = Graph()
    loaded = graph.load(GOLDEN_FILE)
    image = graph.add("LoadImage", image=uploaded[0])
    native = graph.generate_text(loaded[1], question, tokens=12, image=image)
    words = graph.generate_text(loaded[1], question, tokens=12)
    found, ours, blind = graph.texts(server, native, graph.describe(loaded[1], image, question, tokens=12), words)
    pipe = golden.pipeline()
    assert found == ours == [pipe.describe(LEFT_RIGHT, question, max_new_tokens=12)]
    assert blind == [pipe.describe([], question, together=True, max_new_tokens=12)] != found


def test_a_seed_fixes_what_is_sampled(server, uploaded):
    graph = Graph()
    loaded = graph.load(GOLDEN_FILE)
    image = graph.add("LoadImage", image=uploaded[0])
    # The same question by another way, because ComfyUI would not run an equal node twice.
    questions = ["What is it?", graph.add("PrimitiveString", value="What is it?")]
    native = [
        graph.generate_text(
            loaded[1],
            question,
            tokens=12,
            image=image,
            temperature=2.0,
            top_k=0,
            top_p=1.0,
            min_p=0.0,
            repetition_penalty=1.0,
            seed=seed,
            presence_penalty=0.0,
        )
        for question, seed in ((questions[0], 3), (questions[1], 3), (questions[0], 4))
    ]
    ours = [
        graph.describe(loaded[1], image, question, tokens=12, temperature=2.0, top_p=1.0, seed=seed)
        for question, seed in ((questions[0], 3), (questions[1], 3), (questions[0], 4))
    ]
    texts = graph.texts(server, *native, *ours)
    assert texts[0] == texts[1] == texts[3] == texts[4] and texts[2] == texts[5] != texts[0]
    assert texts[0] == [
        golden.pipeline().describe(LEFT_RIGHT, "What is it?", max_new_tokens=12, temperature=2.0, seed=3)
    ]


def test_sampled_answers_of_a_batch_are_those_of_single_pictures(server, uploaded):
    graph = Graph()
    loaded = graph.load(GOLDEN_FILE)
    images = [graph.add("LoadImage", image=name) for name in uploaded]
    batch = graph.add("ImageBatch", image1=images[0], image2=images[1])
    together = graph.describe(loaded[1], batch, tokens=12, temperature=2.0, top_p=1.0, seed=5)
    alone = graph.describe(loaded[1], images[1], tokens=12, temperature=2.0, top_p=1.0, seed=6)
    texts = graph.texts(server, together, alone)
    assert texts[0][1:] == texts[1] and len(texts[0]) == 2


# --- pixels -----------------------------------------------------------------------------------------------------


def test_both_decoders_give_the_library_s_pictures(server):
    graph = Graph()
    loaded = graph.load(vae="from checkpoint")
    sampled = graph.flow(loaded, graph.encode(loaded), batch_size=2)
    native = graph.add("VAEDecode", samples=sampled, vae=loaded[2])
    ours = graph.add("JanusFlowVAEDecode", samples=sampled, vae=loaded[2], longest_side=0)
    first, second = graph.pictures(server, native, ours)
    expected = tiny().generate(PROMPT, steps=4, guidance=2.0, seed=7, num_images=2, output="pixels", solver="euler")
    assert torch.equal(first, second) and (first - expected).abs().max() <= 1.1 / 255


def test_a_picture_survives_the_embedded_vae(server, uploaded):
    graph = Graph()
    loaded = graph.load(vae="from checkpoint")
    there = graph.add("VAEEncode", pixels=graph.add("LoadImage", image=uploaded[1]), vae=loaded[2])
    (back,) = graph.pictures(server, graph.add("VAEDecode", samples=there, vae=loaded[2]))
    codec, original = tiny().codec, pixels(STARS)[None]
    assert (back - codec.decode(codec.encode(original))).abs().max() <= 2.01 / 255
    assert -10 * (back - original).square().mean().log10() > 25  # PSNR in dB


def test_vae_decode_enlarges_the_longest_side(server):
    graph = Graph()
    loaded = graph.load(vae="from checkpoint")
    sampled = graph.flow(loaded, graph.encode(loaded), width=96, height=64)
    large, small = graph.pictures(
        server, *(graph.add("JanusFlowVAEDecode", samples=sampled, vae=loaded[2], longest_side=n) for n in (192, 0))
    )
    assert large.shape == (1, 3, 128, 192)
    expected = from_tensor(small.permute(0, 2, 3, 1))[0].resize((192, 128), Image.Resampling.LANCZOS)
    assert (large[0] - pixels(expected)).abs().max() <= 3.01 / 255  # ComfyUI rounds to bytes in another place


@pytest.fixture(scope="module")
def sdxl_vaes(server):
    """Random weights of the SDXL VAE's shape in models/vae, in diffusers' naming and in that of the original file."""
    torch.manual_seed(0)
    with torch.device("meta"):
        shapes = {
            key: value.shape for key, value in AutoencoderKL.from_config(SDXL.to_json_dict()).state_dict().items()
        }
    weights = {
        key: torch.ones(shape)
        if key.endswith("norm.weight") or ".norm" in key and key.endswith(".weight")
        else torch.randn(shape) * (0.02 if key.endswith("bias") else shape[1:].numel() ** -0.5)
        for key, shape in shapes.items()
    }
    halves = {key: value.half() for key, value in weights.items()}
    for name, tensors in (("diffusers", halves), ("original", original_names(halves))):
        save_file(tensors, server.base / "models" / "vae" / f"sdxl_{name}.safetensors")
    return ["sdxl_diffusers.safetensors", "sdxl_original.safetensors"]


def original_names(weights):
    """The weights of an AutoencoderKL under the names of Stability's own file."""
    out = {}
    for key, tensor in weights.items():
        for old, new in (
            ("mid_block.resnets.0", "mid.block_1"),
            ("mid_block.resnets.1", "mid.block_2"),
            ("mid_block.attentions.0", "mid.attn_1"),
            ("conv_norm_out", "norm_out"),
            ("group_norm", "norm"),
            ("conv_shortcut", "nin_shortcut"),
            ("to_out.0", "proj_out"),
            ("to_q", "q"),
            ("to_k", "k"),
            ("to_v", "v"),
            ("downsamplers.0", "downsample"),
            ("upsamplers.0", "upsample"),
        ):
            key = key.replace(old, new)
        for side, count in (("down", None), ("up", 3)):
            for index in range(4):
                there = index if count is None else count - index
                key = key.replace(f"{side}_blocks.{index}.resnets.", f"{side}.{there}.block.")
                key = key.replace(f"{side}_blocks.{index}.", f"{side}.{there}.")
        is_attention = "attn_1" in key and key.endswith("weight") and tensor.ndim == 2
        out[key] = tensor[..., None, None].contiguous() if is_attention else tensor.contiguous()
    return out


def test_an_sdxl_vae_decodes_in_both_namings(server, sdxl_vaes):
    graph = Graph()
    loaded = [graph.load(GOLDEN_FILE, vae=name) for name in sdxl_vaes]
    sampled = graph.flow(loaded[0], graph.encode(loaded[0]), steps=2, width=32, height=16)
    decoded = [graph.add("VAEDecode", samples=sampled, vae=one[2]) for one in loaded]
    first, second = graph.pictures(server, *decoded)
    path = server.base / "models" / "vae" / sdxl_vaes[0]
    expected = LatentCodec(load_vae_files(path)).decode(drawn(golden.pipeline(), steps=2, width=32, height=16))
    assert first.shape == (1, 3, 16, 32) and torch.equal(first, second)
    assert (first - expected).abs().max() <= 1.01 / 255 and first.std() > 0.01


# --- loading ----------------------------------------------------------------------------------------------------


def test_the_loader_lists_every_kind_and_loads_it(server):
    options = server.object_info("JanusFlowLoader")["JanusFlowLoader"]["input"]["required"]["checkpoint"][1]["options"]
    assert options[0] == TINY and {GOLDEN_FOLDER, GOLDEN_FILE, MICRO_FILE} < set(options)
    assert f"{GOLDEN_FOLDER}/model.safetensors" not in options
    graph = Graph()
    sampled = []
    for name in (GOLDEN_FOLDER, GOLDEN_FILE, MICRO_FILE):
        loaded = graph.load(name)
        sampled.append(graph.flow(loaded, graph.encode(loaded), width=32, height=32))
    folder, file, micro = graph.latents(server, *sampled)
    assert torch.equal(folder, file) and relative(micro, drawn(golden.micro())) <= 1e-4


def test_weights_are_kept_in_the_dtype_that_was_chosen(server):
    graph = Graph()
    kinds = ("fp32", "bf16", "fp8_e4m3fn", "default")
    loaded = [graph.load(weight_dtype=kind) for kind in kinds]
    # One step: what weights change in the velocity, of more steps two pictures may come.
    drawn = (graph.flow(one, graph.encode(one), steps=1) for one in loaded)
    exact, half, quarter, default = graph.latents(server, *drawn)
    assert torch.equal(default, exact) or torch.equal(default, half)
    assert relative(half, exact) < 0.05 and 1e-3 < relative(quarter, exact) < 0.5


def test_every_input_is_explained(server):
    for name in OUR_NODES:
        info = server.object_info(name)[name]
        assert info["description"] and info["display_name"] and info["category"] == "JanusFlow"
        inputs = {**info["input"]["required"], **info["input"].get("optional", {})}
        silent = [key for key, value in inputs.items() if not value[1].get("tooltip")]
        for key, value in inputs.items():
            for option in value[1].get("options", []) if value[0] == "COMFY_DYNAMICCOMBO_V3" else []:
                silent += [
                    f"{key}.{sub}"
                    for sub, inner in option["inputs"].get("required", {}).items()
                    if not inner[1].get("tooltip")
                ]
        assert not silent, f"{name}: {silent}"


# --- while it runs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JanusFlowSampler", "KSampler"])
def test_a_sampler_shows_its_progress_and_its_picture(server, kind):
    graph = Graph()
    loaded = graph.load(GOLDEN_FILE)
    encoded = graph.encode(loaded)
    if kind == "KSampler":
        sampled = graph.ksampler(loaded, encoded[0], encoded[1], graph.empty(192, 128), seed=21)
    else:
        sampled = graph.flow(loaded, encoded, seed=21, width=192, height=128)
    graph.save(sampled)
    result = graph.run(server)
    steps = [
        event["data"]["value"]
        for event in result.events
        if event["type"] == "progress" and event["data"]["node"] == sampled.name
    ]
    assert steps == sorted(steps) and steps[-1] == 4
    shown = previews(result, sampled)
    assert len(shown) == 4 and shown[-1].width * 2 == shown[-1].height * 3 + 1
    assert len(set(shown[-1].convert("L").tobytes())) > 8


def test_a_preview_has_the_colors_of_its_picture(server):
    """The VAE of janusflow-tiny has latents of its own, which SDXL's factors would show in false colors."""
    graph = Graph()
    loaded = graph.load(TINY, vae="from checkpoint")
    sampled = graph.flow(loaded, graph.encode(loaded, "a purple heart"), seed=1, steps=20, cfg=2.5)
    decoded = graph.add("VAEDecode", samples=sampled, vae=loaded[2])
    kept = graph.add("SaveImage", images=decoded, filename_prefix="preview")
    result = graph.run(server)
    with Image.open(server.output_path(result.outputs[kept.name]["images"][0])) as picture:
        small = picture.convert("RGB").resize((12, 12), Image.Resampling.BOX)
    shown = previews(result, sampled)[-1].convert("RGB").resize((12, 12), Image.Resampling.BOX)
    error = np.asarray(shown, float) - np.asarray(small, float)
    assert np.abs(error).mean() < 12 and np.abs(error[np.asarray(small).min(axis=2) < 120]).mean() < 45


def tiny_autoencoder(models):
    """A decoder of TAESD's shape with random weights, put where ComfyUI looks for SDXL's; as diffusers has it."""
    torch.manual_seed(2)
    taesd = AutoencoderTiny().eval()
    with torch.no_grad():
        taesd.decoder.layers[-1].weight *= 20  # so that its pictures have contrast
    named = ((*name.split(".", 2)[1:], weight) for name, weight in taesd.decoder.state_dict().items())
    behind_clamp = {f"{int(place) + 1}.{rest}": weight.contiguous() for place, rest, weight in named}
    save_file(behind_clamp, models / "vae_approx" / "taesdxl_decoder.safetensors")
    return taesd


def test_taesd_previews_latents_of_sdxl_and_no_others(server, monkeypatch):
    taesd, post = tiny_autoencoder(server.base / "models"), server._post

    def with_taesd(path, body):
        return post(path, {**body, "extra_data": {"preview_method": "taesd"}} if path == "/prompt" else body)

    def last_preview(name):
        graph = Graph()
        loaded = graph.load(name)
        sampled = graph.flow(loaded, graph.encode(loaded), width=96, height=64)
        kept = graph.save(sampled)
        result = graph.run(server)
        latent = load_file(server.output_path(result.outputs[kept.name]["latents"][0]))["latent_tensor"]
        return np.asarray(previews(result, sampled)[-1].convert("RGB").resize((96, 64)), float), latent * SCALE

    monkeypatch.setattr(server, "_post", with_taesd)
    for name, decode in ((GOLDEN_FILE, lambda z: taesd.decode(z).sample), (TINY, tiny().drawing.preview.decode)):
        shown, latent = last_preview(name)
        with torch.no_grad():
            colors = F.interpolate(decode(latent), (64, 96), mode="bilinear")[0].movedim(0, 2)
        expected = ((colors + 1) / 2).clamp(0, 1).numpy() * 255
        assert expected.std() > 10 and np.abs(shown - expected).mean() < 0.3 * expected.std()


def events_after_interrupt(server, graph, node):
    """How many messages of progress still come when a prompt is cancelled at the second one of `node`."""
    seen = []

    def watch(event):
        if event["type"] == "progress" and event["data"]["node"] == node.name:
            seen.append(event["data"]["value"] / event["data"]["max"])
            if len(seen) == 2:
                server.interrupt()

    result = server.run(graph.prompt, on_event=watch, timeout=120)
    assert (result.status, result.error) == ("interrupted", None) and seen[-1] < 1
    return len(seen) - 2


@pytest.mark.parametrize("kind", ["JanusFlowSampler", "KSampler"])
def test_a_sampler_stops_within_a_step(server, kind):
    graph = Graph()
    loaded = graph.load(GOLDEN_FILE)
    encoded = graph.encode(loaded)
    if kind == "KSampler":
        sampled = graph.ksampler(loaded, encoded[0], encoded[1], graph.empty(640, 640), steps=200, seed=22)
    else:
        sampled = graph.flow(loaded, encoded, width=640, height=640, steps=200, seed=22)
    graph.save(sampled)
    assert events_after_interrupt(server, graph, sampled) <= 1
    again = Graph()
    loaded = again.load(GOLDEN_FILE)
    found = again.latents(server, again.flow(loaded, again.encode(loaded), width=96, height=64))
    assert relative(found[0], drawn(golden.pipeline(), width=96, height=64)) <= 1e-4


@pytest.mark.parametrize("kind", ["JanusFlowDescribe", "TextGenerate"])
def test_writing_can_be_cancelled(server, uploaded, kind):
    graph = Graph()
    loaded = graph.load(GOLDEN_FILE)
    image = graph.add("LoadImage", image=uploaded[0])
    if kind == "TextGenerate":
        writer = graph.generate_text(loaded[1], "Go on.", tokens=2000, image=image)
    else:
        batch = graph.add("RepeatImageBatch", image=image, amount=8)
        writer = graph.describe(loaded[1], batch, "Go on.", tokens=2000)
    graph.show(writer)
    assert events_after_interrupt(server, graph, writer) <= 1
    again = Graph()
    loaded = again.load(GOLDEN_FILE)
    words = again.texts(server, again.describe(loaded[1], again.add("LoadImage", image=uploaded[0]), tokens=6))
    assert words == [[golden.pipeline().describe(LEFT_RIGHT, max_new_tokens=6)]]
