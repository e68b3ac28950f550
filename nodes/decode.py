"""VAE Decode: latents to pictures, with the authors' enlargement if wanted."""

from __future__ import annotations

from typing import Any

from .native.compat import io, utils
from .native.drawing import check_vae
from .native.refusals import check_decodable


class JanusFlowVAEDecode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="JanusFlowVAEDecode",
            display_name="VAE Decode (JanusFlow)",
            category="JanusFlow",
            description="Turns latents into pictures, like VAE Decode, and can enlarge them as the authors' demo does.",
            search_aliases=["janus decode", "latent to image", "upscale"],
            inputs=[
                io.Latent.Input("samples", tooltip="Any SDXL latent."),
                io.Vae.Input("vae", tooltip="The VAE of Load JanusFlow, or any SDXL VAE for the official checkpoint."),
                io.Int.Input(
                    "longest_side",
                    default=0,
                    min=0,
                    max=8192,
                    step=16,
                    advanced=True,
                    tooltip="Enlarge (Lanczos) until the longer side has so many pixels; 0 keeps the size. The "
                    "authors' demo shows 1024. This adds pixels, not detail.",
                ),
            ],
            outputs=[io.Image.Output(display_name="IMAGE", tooltip="The pictures, one for each latent.")],
        )

    @classmethod
    def execute(cls, samples: dict[str, Any], vae: Any, longest_side: int = 0) -> io.NodeOutput:
        check_vae(vae)
        latents = samples["samples"] if isinstance(samples, dict) else None
        check_decodable(latents, vae.latent_channels)
        images = vae.decode(latents)  # (B, H, W, 3)
        height, width = images.shape[1:3]
        if longest_side and longest_side != max(height, width):
            scale = longest_side / max(height, width)
            size = max(1, round(width * scale)), max(1, round(height * scale))
            images = utils.common_upscale(images.movedim(-1, 1), *size, "lanczos", "disabled").movedim(1, -1)
        return io.NodeOutput(images)
