"""Flow Sampler: the paper's uniform grid and per-picture seeds, on ComfyUI's own sampling."""

from __future__ import annotations

import math
from typing import Any

import torch

from ..janusflow_core.canvas import varied_noise
from ..janusflow_core.guidance import Guidance
from ..janusflow_core.sampling import time_grid
from .native.compat import SDXL, io, latent_preview, model_management, sample, samplers
from .native.guidance import with_guidance
from .native.model import JanusFlowModel

SAMPLERS = ["auto", "euler", "heun", "dpmpp_2m", "uni_pc", "res_multistep", "euler_ancestral", "ipndm_v"]


class JanusFlowSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="JanusFlowSampler",
            display_name="Flow Sampler (JanusFlow)",
            category="JanusFlow",
            description="Draws latents with the paper's flow. Picture k of seed s equals a run of seed s + k.",
            search_aliases=["janus sampler", "ksampler", "rectified flow", "text to image"],
            inputs=[
                io.Model.Input("model", tooltip="The MODEL of Load JanusFlow, patched or not."),
                io.Conditioning.Input("positive", tooltip="What to draw."),
                io.Conditioning.Input("negative", tooltip="What to steer away from; the empty prompt means no prompt."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Seed of the first picture; each further one adds 1.",
                ),
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
                    "for JanusFlow-1.3B, 2.5 for janusflow-tiny.",
                ),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="Start from this latent (image to image, or inpainting with a noise mask). "
                    "Without it a new picture of the size below is drawn.",
                ),
                io.Int.Input(
                    "width",
                    default=0,
                    min=0,
                    max=4096,
                    step=16,
                    tooltip="Pixels, a multiple of 16; 0 is the size the model was trained at. Other sizes are off "
                    "its training. Ignored when a latent is connected.",
                ),
                io.Int.Input("height", default=0, min=0, max=4096, step=16, tooltip="As width."),
                io.Int.Input(
                    "batch_size",
                    default=1,
                    min=1,
                    max=256,
                    tooltip="Pictures to draw at once. Ignored when a latent is connected.",
                ),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="How far a connected latent is dissolved: 1 forgets it, 0.5 keeps its composition.",
                ),
                io.Combo.Input(
                    "sampler",
                    options=SAMPLERS,
                    default="auto",
                    advanced=True,
                    tooltip="auto takes what suits the checkpoint: euler, the paper's, for JanusFlow-1.3B. heun costs "
                    "two evaluations a step.",
                ),
                io.Float.Input(
                    "shift",
                    default=1.0,
                    min=0.1,
                    max=20.0,
                    step=0.1,
                    advanced=True,
                    tooltip="Above 1 spends more steps near the noise. 1 is the paper's uniform grid.",
                ),
                # Later inputs are optional and last, so that graphs saved without them still run.
                io.Float.Input(
                    "guidance_start",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip="From when on cfg counts, between 0, noise, and 1, the picture.",
                ),
                io.Float.Input(
                    "guidance_end",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip="Until when cfg counts. Steps outside take half the time.",
                ),
                io.Float.Input(
                    "guidance_rescale",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    optional=True,
                    advanced=True,
                    tooltip="How far the contrast that cfg adds is taken back: for high cfg that burns colors.",
                ),
                io.Boolean.Input(
                    "cfg_zero_star",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="Scales the velocity without prompt to fit the one with it (CFG-Zero*).",
                ),
                io.Int.Input(
                    "variation_seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    optional=True,
                    advanced=True,
                    tooltip="Seed of the noise that variation_strength turns to; each further picture adds 1.",
                ),
                io.Float.Input(
                    "variation_strength",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip="How far the noise turns from seed's to variation_seed's: 0.1 is a sister of the picture.",
                ),
            ],
            outputs=[io.Latent.Output(display_name="LATENT", tooltip="Unscaled, like every SDXL latent.")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Any,
        negative: Any,
        seed: int,
        steps: int,
        cfg: float,
        width: int,
        height: int,
        batch_size: int,
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
    ) -> io.NodeOutput:
        if not isinstance(model.model, JanusFlowModel):
            raise ValueError("Flow Sampler needs a JanusFlow MODEL; for other models use KSampler.")
        for name, value in (("cfg", cfg), ("denoise", denoise), ("shift", shift)):
            if not math.isfinite(value):  # JSON may say NaN, which no widget's bounds keep out
                raise ValueError(f"{name} is {value}, but must be a number.")
        drawing = model.model.model_config.drawing
        steps, cfg = steps or drawing.steps, drawing.guidance if cfg < 0 else cfg
        model = with_guidance(model, Guidance(cfg, guidance_start, guidance_end, cfg_zero_star, guidance_rescale))
        start = dict(latent) if latent is not None else _empty_latent(model, width, height, batch_size)
        samples = sample.fix_empty_latent_channels(model, start["samples"])
        indices = start.get("batch_index", range(len(samples)))
        seeds, others = ([(first + k) % 2**64 for k in indices] for first in (seed, variation_seed))
        noise = varied_noise(samples.shape[1:], seeds, others, variation_strength)
        # The schedule is the model's own uniform grid; sigma counts noise, t counts data.
        sigmas = torch.tensor([1.0 - t for t in time_grid(steps, start=1.0 - denoise, shift=shift)])
        callback = latent_preview.prepare_callback(model, steps)
        start["samples"] = sample.sample_custom(
            model,
            noise,
            cfg,
            _solver(drawing.solver) if sampler == "auto" else samplers.sampler_object(sampler),
            sigmas,
            positive,
            negative,
            samples,
            noise_mask=start.get("noise_mask"),
            callback=callback,
            seed=seed,
        )
        return io.NodeOutput(start)


def _solver(name: str) -> Any:
    """ComfyUI's sampler that computes what the library's solver does."""
    if name == "ab2":
        return samplers.ksampler("ipndm_v", {"max_order": 2})
    return samplers.sampler_object(name)


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
