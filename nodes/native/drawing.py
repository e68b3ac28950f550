"""Drawing as Flow Sampler does it: the paper's uniform grid and per-picture seeds, on ComfyUI's own sampling."""

from __future__ import annotations

import math
from typing import Any

import torch
from tqdm.auto import tqdm

from ...janusflow_core.canvas import varied_noise
from ...janusflow_core.guidance import Guidance
from ...janusflow_core.sampling import integrate, time_grid
from ...janusflow_core.seeds import later
from .compat import SDXL, io, latent_preview, model_management, sample, samplers
from .guidance import with_guidance
from .model import JanusFlowModel
from .refusals import check_latents

SAMPLERS = ["auto", "euler", "heun", "dpmpp_2m", "uni_pc", "res_multistep", "euler_ancestral", "ipndm_v", "renoise"]


def seed_input() -> Any:
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=0xFFFFFFFFFFFFFFFF,
        control_after_generate=True,
        tooltip="Seed of the first picture; each further one adds 1.",
    )


def strength_inputs() -> list[Any]:
    """How much is computed, and how much the prompt counts."""
    return [
        io.Int.Input(
            "steps",
            default=0,
            min=0,
            max=1000,
            tooltip="Evaluations of the model. 0 takes what suits the checkpoint: 30 for JanusFlow-1.3B.",
        ),
        io.Float.Input(
            "cfg",
            default=-1.0,
            min=-1.0,
            max=30.0,
            step=0.1,
            tooltip="Guidance weight; 1 is none and twice as fast. Below 0 takes what suits the checkpoint: 2 "
            "for JanusFlow-1.3B, 3 for janusflow-tiny.",
        ),
    ]


def check_vae(vae: Any) -> None:
    """Raises ValueError where Load JanusFlow was asked for none, or where a text stands instead of a link."""
    if not hasattr(vae, "latent_channels"):
        raise ValueError("There is no VAE: choose one in Load JanusFlow's field `vae`, or connect Load VAE.")


def draw(
    model: Any,
    positive: Any,
    negative: Any,
    seed: int,
    steps: int = 0,
    cfg: float = -1.0,
    width: int = 0,
    height: int = 0,
    batch_size: int = 1,
    denoise: float = 1.0,
    sampler: str = "auto",
    shift: float = 1.0,
    latent: dict[str, Any] | None = None,
    guidance_start: float = 0.0,
    guidance_end: float = 1.0,
    guidance_rescale: float = 0.0,
    cfg_zero_star: bool = False,
    variation_seed: int = 0,
    variation_strength: float = 0.0,
) -> dict[str, Any]:
    """A LATENT, drawn from the noise of `seed`, `seed + 1`, …, or from another LATENT; see the node's inputs.

    Raises ValueError with one sentence for a MODEL that is not JanusFlow's and for settings that are no settings.
    """
    if not isinstance(getattr(model, "model", None), JanusFlowModel):
        raise ValueError("Flow Sampler needs a JanusFlow MODEL; for other models use KSampler.")
    for name, value, kind in (
        ("positive", positive, list),
        ("negative", negative, list),
        ("latent", latent or {}, dict),
    ):
        if not isinstance(value, kind):  # a workflow that was edited by hand
            raise ValueError(f"{name} is {str(value)[:40]!r}, but must be linked to another node's output.")
    for name, value in (("cfg", cfg), ("denoise", denoise), ("shift", shift)):
        if not math.isfinite(value):  # JSON may say NaN, which no widget's bounds keep out
            raise ValueError(f"{name} is {value}, but must be a number.")
    drawing = model.model.model_config.drawing
    steps, cfg = steps or drawing.steps, drawing.guidance if cfg < 0 else cfg
    model = with_guidance(model, Guidance(cfg, guidance_start, guidance_end, cfg_zero_star, guidance_rescale))
    start = dict(latent) if latent is not None else _empty_latent(model, width, height, batch_size)
    samples = sample.fix_empty_latent_channels(model, start["samples"])
    check_latents(samples, model.model.model_config.core.flow.latent_channels)
    indices = start.get("batch_index", range(len(samples)))
    seeds, others = ([later(first, k) for k in indices] for first in (seed, variation_seed))
    noise = varied_noise(samples.shape[1:], seeds, others, variation_strength)
    # The schedule is the model's own uniform grid; sigma counts noise, t counts data.
    sigmas = torch.tensor([1.0 - t for t in time_grid(steps, start=1.0 - denoise, shift=shift)])
    callback = latent_preview.prepare_callback(model, steps)
    start["samples"] = sample.sample_custom(
        model,
        noise,
        cfg,
        _solver(drawing.solver if sampler == "auto" else sampler, noise),
        sigmas,
        positive,
        negative,
        samples,
        noise_mask=start.get("noise_mask"),
        callback=callback,
        seed=seed,
    )
    return start


def _solver(name: str, noise: torch.Tensor) -> Any:
    """ComfyUI's sampler of that name, or the one that computes what the library's solver of that name does."""
    if name == "ab2":
        return samplers.ksampler("ipndm_v", {"max_order": 2})
    if name == "renoise":
        return samplers.KSAMPLER(_renoise, {"noise": noise})
    return samplers.sampler_object(name)


def _renoise(
    model: Any,
    z: torch.Tensor,
    sigmas: torch.Tensor,
    noise: torch.Tensor,
    extra_args: dict[str, Any],
    callback: Any,
    disable: bool,
) -> torch.Tensor:
    """The library's solver as ComfyUI calls a sampler: its model tells the picture ahead at sigma = 1 - t."""

    def velocity(z: torch.Tensor, t: float) -> torch.Tensor:
        sigma = 1.0 - t
        return (model(z, z.new_full((len(z),), sigma), **extra_args) - z) / sigma

    def on_step(done: int, steps: int, ahead: torch.Tensor) -> None:
        bar.update()
        callback(
            {"x": ahead, "i": done - 1, "sigma": sigmas[done - 1], "sigma_hat": sigmas[done - 1], "denoised": ahead}
        )

    times = [1.0 - sigma for sigma in sigmas.tolist()]
    with tqdm(total=len(times) - 1, disable=disable) as bar:
        return integrate(velocity, z, times, "renoise", on_step=on_step, noise=noise.to(z.device))


def _empty_latent(model: Any, width: int, height: int, batch_size: int) -> dict[str, Any]:
    own = model.model.model_config
    trained = own.core.vision.image_size
    sides = [height or own.drawing.height or trained, width or own.drawing.width or trained]
    for name, side in zip(("height", "width"), sides, strict=True):
        if side % 16:
            raise ValueError(
                f"{name} is {side} pixels, but must be a multiple of 16, for example {side - side % 16 or 16}."
            )
    shape = (batch_size, SDXL.latent_channels, sides[0] // 8, sides[1] // 8)
    return {"samples": torch.zeros(shape, device=model_management.intermediate_device())}
