"""Flow Sampler: prompts to latents."""

from __future__ import annotations

from typing import Any

from .native.compat import io
from .native.drawing import SAMPLERS, draw, seed_input, strength_inputs


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
                seed_input(),
                *strength_inputs(),
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
                    tooltip="auto takes what suits the checkpoint: euler, the paper's, for JanusFlow-1.3B; renoise for "
                    "janusflow-tiny. heun costs two evaluations a step.",
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
    def execute(cls, model: Any, positive: Any, negative: Any, seed: int, *more: Any, **settings: Any) -> io.NodeOutput:
        return io.NodeOutput(draw(model, positive, negative, seed, *more, **settings))
