"""Native company: what ComfyUI's own nodes make of our MODEL, CLIP, VAE and LATENT, each beside the library.

The table in docs/native.md names the test of every row.
"""

import re
from collections.abc import Callable

import graphs
import pytest
import torch
from graphs import LEFT_RIGHT, PROMPT, Graph, relative, tiny
from inprocess import since
from torch import Tensor

from janusflow_core.convert import convert
from janusflow_core.guidance import Guidance
from janusflow_core.image import from_tensor, pixels
from janusflow_core.sampling import Velocity, draw_noise, integrate, time_grid
from janusflow_core.world.judge import judge

STEPS, CFG, SEED = 6, 2.0, 7
OTHER = "three green stars"


@pytest.fixture(scope="module", autouse=True)
def stocked(server):
    graphs.stock(server.base / "models")


def noise(count: int = 1) -> Tensor:
    return draw_noise((4, 12, 12), range(SEED, SEED + count))


def flow(rows: list[Tensor], guidance: float = CFG, negatives: list[Tensor] | None = None) -> Velocity:
    """The library's velocity of prompts that are given as embeddings (L, D)."""
    return tiny().model.guided(rows, negatives, Guidance(guidance), (12, 12))


def embedded(text: str) -> Tensor:
    return tiny()._embedded(text)


@torch.no_grad()
def solved(velocity: Velocity, steps: int = STEPS) -> Tensor:
    return integrate(velocity, noise(), time_grid(steps))


def both(
    server, node_of: Callable[[Graph, graphs.Node], object], expected: Tensor, plain: Tensor | None = None
) -> None:
    """What a graph draws is what the library draws, and not the `plain` picture."""
    graph = Graph()
    (found,) = graph.latents(server, node_of(graph, graph.load()))
    assert relative(found, expected) <= 1e-3
    assert plain is None or relative(found, plain) > 1e-2


def ksampler(graph: Graph, loaded: graphs.Node, positive, negative, latent=None, **changed):
    return graph.ksampler(loaded, positive, negative, latent, **{"steps": STEPS, "cfg": CFG, "seed": SEED, **changed})


@pytest.fixture(scope="module")
def plain() -> Tensor:
    return tiny().generate(PROMPT, steps=STEPS, guidance=CFG, seed=SEED, output="latent", solver="euler")


# --- conditioning -----------------------------------------------------------------------------------------------


def test_conditioning_combine_averages_what_each_prompt_wants(server, plain):
    def graph_of(graph, loaded):
        one, other = graph.clip_text(loaded, PROMPT), graph.clip_text(loaded, OTHER)
        mixed = graph.add("ConditioningCombine", conditioning_1=one, conditioning_2=other)
        return ksampler(graph, loaded, mixed, graph.clip_text(loaded, ""), cfg=1.0)

    one, other = flow([embedded(PROMPT)], 1.0), flow([embedded(OTHER)], 1.0)
    both(server, graph_of, solved(lambda z, t: (one(z, t) + other(z, t)) / 2), plain)


def test_conditioning_average_mixes_embeddings(server, plain):
    def graph_of(graph, loaded):
        one, other = graph.clip_text(loaded, PROMPT), graph.clip_text(loaded, OTHER)
        mixed = graph.add(
            "ConditioningAverage", conditioning_to=one, conditioning_from=other, conditioning_to_strength=0.6
        )
        return ksampler(graph, loaded, mixed, graph.clip_text(loaded, ""))

    one, other = embedded(PROMPT), embedded(OTHER)
    other = torch.cat((other, other.new_zeros(max(len(one) - len(other), 0), one.shape[1])))[: len(one)]
    both(server, graph_of, solved(flow([0.6 * one + 0.4 * other])), plain)


def test_conditioning_concat_reads_one_prompt_after_the_other(server, plain):
    def graph_of(graph, loaded):
        one, other = graph.clip_text(loaded, PROMPT), graph.clip_text(loaded, OTHER)
        joined = graph.add("ConditioningConcat", conditioning_to=one, conditioning_from=other)
        return ksampler(graph, loaded, joined, graph.clip_text(loaded, ""))

    both(server, graph_of, solved(flow([torch.cat((embedded(PROMPT), embedded(OTHER)))])), plain)


def test_conditioning_zero_out_is_no_prompt(server, plain):
    def graph_of(graph, loaded):
        positive = graph.clip_text(loaded, PROMPT)
        return ksampler(graph, loaded, positive, graph.add("ConditioningZeroOut", conditioning=positive))

    both(server, graph_of, plain)


def test_timestep_ranges_change_the_prompt_on_the_way(server, plain):
    def graph_of(graph, loaded):
        ranges = ((PROMPT, 0.0, 0.5), (OTHER, 0.5, 1.0))
        first, second = (
            graph.add("ConditioningSetTimestepRange", conditioning=graph.clip_text(loaded, text), start=start, end=end)
            for text, start, end in ranges
        )
        mixed = graph.add("ConditioningCombine", conditioning_1=first, conditioning_2=second)
        return ksampler(graph, loaded, mixed, graph.clip_text(loaded, ""), cfg=1.0, steps=5)

    one, other = flow([embedded(PROMPT)], 1.0), flow([embedded(OTHER)], 1.0)
    both(server, graph_of, solved(lambda z, t: (one if t < 0.5 else other)(z, t), 5), plain)


def test_an_area_confines_a_prompt(server):
    """Each prompt speaks for its half alone."""
    area = {"width": 96, "height": 96, "y": 0, "strength": 1.0}

    def graph_of(graph, loaded):
        confined, rest = (
            graph.add("ConditioningSetArea", conditioning=graph.clip_text(loaded, text), x=x, **area)
            for text, x in ((PROMPT, 0), (OTHER, 96))
        )
        mixed = graph.add("ConditioningCombine", conditioning_1=confined, conditioning_2=rest)
        return ksampler(graph, loaded, mixed, graph.clip_text(loaded, ""), graph.empty(192, 96), cfg=1.0)

    halves = flow([embedded(PROMPT)], 1.0), flow([embedded(OTHER)], 1.0)
    start = torch.randn(1, 4, 12, 24, generator=torch.manual_seed(SEED))  # core's noise of this size
    parts = [integrate(v, start[..., at : at + 12], time_grid(STEPS)) for v, at in zip(halves, (0, 12), strict=True)]
    graph = Graph()
    (found,) = graph.latents(server, graph_of(graph, graph.load()))
    for part, at in zip(parts, (0, 12), strict=True):  # both halves are whole pictures of their own
        inner = slice(at + 2, at + 10)
        assert relative(found[..., inner], part[..., 2:10]) <= 0.05


# --- samplers and schedulers of KSampler -------------------------------------------------------------------------

# They solve the flow: in twenty steps they come within a tenth of where the flow leads, most within a thirtieth.
SOLVERS = ["euler", "heun", "heunpp2", "exp_heun_2_x0", "dpm_2", "dpm_adaptive", "lms", "dpmpp_2m", "ipndm", "ipndm_v"]
SOLVERS += ["deis", "res_multistep", "gradient_estimation", "ddim", "uni_pc", "uni_pc_bh2"]
# They add noise on the way and draw another right picture, or solve more coarsely.
OTHERS = ["euler_ancestral", "dpm_2_ancestral", "dpm_fast", "dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_sde_gpu", "ddpm"]
OTHERS += ["dpmpp_2m_sde", "dpmpp_2m_sde_gpu", "dpmpp_2m_sde_heun", "dpmpp_2m_sde_heun_gpu", "dpmpp_3m_sde", "lcm"]
OTHERS += ["dpmpp_3m_sde_gpu", "exp_heun_2_x0_sde", "res_multistep_ancestral", "er_sde", "seeds_2", "seeds_3"]
OTHERS += ["sa_solver", "sa_solver_pece"]
# They guide in a way of their own, made for a cfg near 1, and are not for this one.
UNSUITED = ["euler_cfg_pp", "euler_ancestral_cfg_pp", "dpmpp_2s_ancestral_cfg_pp", "dpmpp_2m_cfg_pp"]
UNSUITED += ["res_multistep_cfg_pp", "res_multistep_ancestral_cfg_pp", "gradient_estimation_cfg_pp"]
# The flow's time runs evenly; the last four bend it, two of them out of all use.
EVEN, BENT = ["simple", "sgm_uniform", "normal", "beta"], ["linear_quadratic", "ddim_uniform", "kl_optimal"]
BENT += ["karras", "exponential"]
TEXTS = ("three green stars", "a yellow heart")


@pytest.fixture(scope="module")
def solutions() -> list[Tensor]:
    """Where the flow of each prompt leads, solved finely."""
    fine = {"steps": 200, "guidance": 2.5, "solver": "heun", "output": "latent"}
    return [tiny().generate(text, seed=SEED, **fine) for text in TEXTS]


def drawn_by(server, sampler: str, scheduler: str = "simple") -> list[Tensor]:
    graph = Graph()
    loaded = graph.load()
    nodes = []
    for text in TEXTS:
        encoded, how = graph.encode(loaded, text), {"sampler_name": sampler, "scheduler": scheduler}
        nodes.append(graph.ksampler(loaded, encoded[0], encoded[1], seed=SEED, steps=20, cfg=2.5, **how))
    return graph.latents(server, *nodes)


def shows(latents: Tensor, text: str) -> bool:
    return judge(from_tensor(tiny().codec.decode(latents).permute(0, 2, 3, 1))[0], text)


def test_every_sampler_and_scheduler_is_known(server):
    """A new one in ComfyUI wants its row in docs/native.md."""
    needs = server.object_info()["KSampler"]["input"]["required"]
    samplers, schedulers = (needs[name][0] for name in ("sampler_name", "scheduler"))
    assert sorted(samplers) == sorted([*SOLVERS, *OTHERS, *UNSUITED])
    assert sorted(schedulers) == sorted([*EVEN, *BENT])


@pytest.mark.parametrize("sampler", SOLVERS)
def test_solvers_come_where_the_flow_leads(server, solutions, sampler):
    found = drawn_by(server, sampler)
    assert sum(map(relative, found, solutions)) / len(TEXTS) <= 0.12
    assert all(map(shows, found, TEXTS))


@pytest.mark.parametrize("sampler", [*OTHERS, *UNSUITED])
def test_other_samplers_draw_something_whole(server, solutions, sampler):
    for found, solution in zip(drawn_by(server, sampler), solutions, strict=True):
        assert found.isfinite().all() and 0.5 * solution.std() < found.std() < 2 * solution.std()


@pytest.mark.parametrize(("scheduler", "near"), [*((name, 0.12) for name in EVEN), *((name, 0.2) for name in BENT[:3])])
def test_schedulers_that_keep_the_flows_time_draw_its_picture(server, solutions, scheduler, near):
    found = drawn_by(server, "euler", scheduler)
    assert sum(map(relative, found, solutions)) / len(TEXTS) <= near
    assert all(map(shows, found, TEXTS))


@pytest.mark.parametrize("scheduler", BENT[3:])
def test_schedulers_of_diffusion_models_miss_it(server, solutions, scheduler):
    found = drawn_by(server, "euler", scheduler)
    assert sum(map(relative, found, solutions)) / len(TEXTS) > 0.15  # further than any that runs evenly


# --- guiders and samplers ---------------------------------------------------------------------------------------


def custom(graph: Graph, loaded: graphs.Node, guider, **changed):
    """SamplerCustomAdvanced's first output."""
    inputs = {
        "noise": graph.add("RandomNoise", noise_seed=SEED),
        "guider": guider,
        "sampler": graph.add("KSamplerSelect", sampler_name="euler"),
        "sigmas": graph.add("BasicScheduler", model=loaded, scheduler="simple", steps=STEPS, denoise=1.0),
        "latent_image": graph.empty(96, 96),
    }
    return graph.add("SamplerCustomAdvanced", **{**inputs, **changed})


def test_dual_guidance_weighs_two_prompts(server, plain):
    def graph_of(graph, loaded):
        conds = [graph.clip_text(loaded, text) for text in (PROMPT, OTHER, "")]
        cfg = {"cfg_conds": 3.0, "cfg_cond2_negative": 1.5, "style": "regular"}
        guider = graph.add("DualCFGGuider", model=loaded, cond1=conds[0], cond2=conds[1], negative=conds[2], **cfg)
        return custom(graph, loaded, guider)

    first, second = embedded(PROMPT), embedded(OTHER)
    one, two, none = (flow([first], 1.0), flow([second], 1.0), flow([first], 0.0))

    def velocity(z: Tensor, t: float) -> Tensor:
        v = two(z, t)
        return none(z, t) + 1.5 * (v - none(z, t)) + 3.0 * (one(z, t) - v)

    both(server, graph_of, solved(velocity), plain)


@pytest.mark.parametrize("half", [1, 3, 5])
def test_ksampler_advanced_stops_on_the_way_and_goes_on(server, plain, half):
    def graph_of(graph, loaded):
        encoded = graph.encode(loaded)
        common = {"model": loaded, "positive": encoded[0], "negative": encoded[1], "noise_seed": SEED, "cfg": CFG}
        common |= {"steps": STEPS, "sampler_name": "euler", "scheduler": "simple"}
        first = graph.add(
            "KSamplerAdvanced",
            latent_image=graph.empty(96, 96),
            add_noise="enable",
            start_at_step=0,
            end_at_step=half,
            return_with_leftover_noise="enable",
            **common,
        )
        return graph.add(
            "KSamplerAdvanced",
            latent_image=first,
            add_noise="disable",
            start_at_step=half,
            end_at_step=10000,
            return_with_leftover_noise="disable",
            **common,
        )

    both(server, graph_of, plain)


def test_sigmas_split_in_two_runs_are_one_run(server, plain):
    def graph_of(graph, loaded):
        encoded = graph.encode(loaded)
        guider = graph.add("CFGGuider", model=loaded, positive=encoded[0], negative=encoded[1], cfg=CFG)
        sigmas = graph.add("BasicScheduler", model=loaded, scheduler="simple", steps=STEPS, denoise=1.0)
        high, low = (graph.add("SplitSigmas", sigmas=sigmas, step=4)[slot] for slot in (0, 1))
        first = custom(graph, loaded, guider, sigmas=high)
        return custom(graph, loaded, guider, sigmas=low, latent_image=first, noise=graph.add("DisableNoise"))

    both(server, graph_of, plain)


def test_easy_cache_skips_evaluations_and_draws_nearly_the_same(server):
    graph = Graph()
    loaded = graph.load()
    encoded = graph.encode(loaded)
    how = {"reuse_threshold": 0.2, "start_percent": 0.15, "end_percent": 0.95, "verbose": False}
    cached = graph.add("EasyCache", model=loaded, **how)
    plain, found = graph.latents(
        server, *(graph.ksampler(model, encoded[0], encoded[1], steps=30) for model in (loaded, cached))
    )
    (skipped,) = re.findall(r"EasyCache - skipped (\d+)/30 steps", server.log())
    assert 10 <= int(skipped) <= 25 and 1e-4 < relative(found, plain) < 0.2
    assert judge(from_tensor(tiny().codec.decode(found).permute(0, 2, 3, 1))[0], PROMPT)


# --- latents ----------------------------------------------------------------------------------------------------


def test_a_latent_made_larger_is_drawn_on(server):
    """Hires fix: twice the size by LatentUpscaleBy, half dissolved, drawn again: as the library does it."""
    graph = Graph()
    loaded = graph.load()
    encoded = graph.encode(loaded)
    small = graph.ksampler(loaded, encoded[0], encoded[1], steps=STEPS)
    large = graph.add("LatentUpscaleBy", samples=small, upscale_method="nearest-exact", scale_by=1.5)
    again = graph.flow(loaded, encoded, latent=large, denoise=0.5, steps=4)
    first, second, found = graph.latents(server, small, large, again)
    assert torch.equal(second, torch.nn.functional.interpolate(first, scale_factor=1.5, mode="nearest-exact"))
    z = draw_noise((4, 18, 18), [SEED])
    velocity = tiny().model.guided([embedded(PROMPT)], None, Guidance(CFG), (18, 18))
    with torch.no_grad():
        expected = integrate(velocity, 0.5 * second + 0.5 * z, time_grid(4, 0.5))
    assert relative(found, expected) <= 1e-3


def test_latents_are_put_together_and_repeated(server):
    graph = Graph()
    loaded = graph.load()
    one, other = (graph.flow(loaded, graph.encode(loaded, text)) for text in (PROMPT, OTHER))
    together = graph.add("LatentComposite", samples_to=one, samples_from=other, x=48, y=0, feather=0)
    repeated = graph.add("RepeatLatentBatch", samples=together, amount=3)
    again = graph.flow(loaded, graph.encode(loaded), latent=repeated, denoise=0.5)
    first, second, joined, drawn = graph.latents(server, one, other, together, again)
    assert torch.equal(joined[..., :6], first[..., :6]) and torch.equal(joined[..., 6:], second[..., :6])
    expected = integrate(
        tiny().model.guided([embedded(PROMPT)] * 3, None, Guidance(CFG), (12, 12)),
        0.5 * joined + 0.5 * noise(3),
        time_grid(4, 0.5),
    )
    assert relative(drawn, expected) <= 1e-3


def test_inpaint_conditioning_paints_what_the_mask_frees(server, tmp_path):
    graph = Graph()
    loaded = graph.load(vae="from checkpoint")
    name = graphs.upload(server, tmp_path, LEFT_RIGHT)[0]
    image = graph.add("LoadImage", image=name)
    whole, right = (graph.add("SolidMask", value=float(width == 48), width=width, height=96) for width in (96, 48))
    mask = graph.add("MaskComposite", destination=whole, source=right, x=48, y=0, operation="add")
    encoded = graph.encode(loaded, "a red circle left of a green star")
    links = {"positive": encoded[0], "negative": encoded[1], "vae": loaded[2], "pixels": image, "mask": mask}
    inpaint = graph.add("InpaintModelConditioning", noise_mask=True, **links)
    sampled = graph.ksampler(loaded, inpaint[0], inpaint[1], inpaint[2], steps=30, cfg=2.5)
    start, found = graph.latents(server, graph.add("VAEEncode", pixels=image, vae=loaded[2]), sampled)
    assert relative(found[..., :6], start[..., :6]) <= 1e-4 and relative(found[..., 6:], start[..., 6:]) > 0.1
    # The same by the library: core paints the masked pixels grey before it encodes what the flow starts from.
    picture = pixels(LEFT_RIGHT)[None]
    expected = tiny().generate(
        "a red circle left of a green star",
        init_image=picture,
        mask=torch.cat((torch.zeros(1, 96, 48), torch.ones(1, 96, 48)), dim=2),
        steps=30,
        guidance=2.5,
        solver="euler",
        seed=SEED,
        output="latent",
    )
    assert relative(found, expected) <= 5e-3


def test_tiles_decode_and_encode_what_the_whole_does(server, tmp_path):
    graph = Graph()
    loaded = graph.load(vae="from checkpoint")
    tile = {"tile_size": 512, "overlap": 64}
    image = graph.add("LoadImage", image=graphs.upload(server, tmp_path, LEFT_RIGHT)[0])
    tiled = graph.add("VAEEncodeTiled", pixels=image, vae=loaded[2], temporal_size=64, temporal_overlap=8, **tile)
    whole, parts = graph.latents(server, graph.add("VAEEncode", pixels=image, vae=loaded[2]), tiled)
    assert relative(parts, whole) <= 1e-3
    graph = Graph()
    loaded = graph.load(vae="from checkpoint")
    sampled = graph.flow(loaded, graph.encode(loaded))
    decoded = graph.add("VAEDecode", samples=sampled, vae=loaded[2])
    tiled = graph.add("VAEDecodeTiled", samples=sampled, vae=loaded[2], temporal_size=64, temporal_overlap=8, **tile)
    backs = [graph.add("VAEEncode", pixels=image, vae=loaded[2]) for image in (decoded, tiled)]
    whole, parts = graph.latents(server, *backs)
    assert relative(parts, whole) <= 1e-3


# --- weights ----------------------------------------------------------------------------------------------------


def test_half_a_merge_with_a_lora_is_half_the_lora(server):
    graph = Graph()
    loaded = graph.load()
    name = "janusflow-tiny-crescent.safetensors"
    whole, half = (
        graph.add("LoraLoaderModelOnly", model=loaded, lora_name=name, strength_model=strength)
        for strength in (1.0, 0.5)
    )
    merged = graph.add("ModelMergeSimple", model1=loaded, model2=whole, ratio=0.5)
    encoded = graph.encode(loaded, "a red crescent")
    found, expected, without = graph.latents(
        server, *(graph.ksampler(model, encoded[0], encoded[1], steps=8) for model in (merged, half, loaded))
    )
    assert relative(found, expected) <= 1e-3 and relative(found, without) > 1e-2


@pytest.mark.parametrize("stored", ["whole", "eight bits"])
def test_train_lora_teaches_a_picture_and_its_lora_draws_it(server, stored):
    """Core's trainer, then its own loader of what it trained; also upon quantised layers, without its bypass mode."""
    if stored == "eight bits":
        since("0.27.0", "layers in int8")
        convert("janusflow-tiny", server.base / "models" / "checkpoints" / "packed.safetensors", quantize="int8")
    graph, packed = Graph(), stored == "eight bits"
    loaded = graph.load("packed.safetensors" if packed else graphs.TINY, vae="from checkpoint", weight_dtype="default")
    picture = graph.add("EmptyImage", width=96, height=96, batch_size=1, color=0x20C0C0)
    taught = graph.add("VAEEncode", pixels=picture, vae=loaded[2])
    encoded = graph.encode(loaded, "a blue square")
    lora = graph.add(
        "TrainLoraNode",
        model=loaded,
        latents=taught,
        positive=encoded,
        **{"batch_size": 4, "grad_accumulation_steps": 1, "steps": 40, "learning_rate": 3e-3, "rank": 8, "seed": 1},
        **{"optimizer": "AdamW", "loss_function": "MSE", "algorithm": "LoRA", "existing_lora": "[None]"},
        **{"training_dtype": "none" if packed else "fp32", "lora_dtype": "fp32", "quantized_backward": False},
        **{"gradient_checkpointing": True, "checkpoint_depth": 1, "offloading": False},
        **{"bucket_mode": False, "bypass_mode": False},
    )
    knowing = graph.add("LoraModelLoader", model=loaded, lora=lora, strength_model=1.0, bypass=False)
    draws = [graph.ksampler(model, encoded[0], encoded[1], cfg=1.0, steps=8) for model in (knowing, loaded)]
    after, before, wanted = graph.latents(server, *draws, taught)
    assert relative(after, wanted) < 0.65 * relative(before, wanted)
