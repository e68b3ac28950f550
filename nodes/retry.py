"""Draw until Right: draws, looks at what came out, and draws again until the model finds its prompt in it."""

from __future__ import annotations

from typing import Any

from ..janusflow_core.seeds import later
from .native.compat import io, show_on_node, ui
from .native.drawing import check_vae, draw, seed_input, strength_inputs
from .native.judging import JUDGING, by_input, prompt_input, scored


class JanusFlowRetry(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="JanusFlowRetry",
            display_name="Draw until Right (JanusFlow)",
            category="JanusFlow",
            description="Draws again, with the next seed, until a picture shows its prompt by the model's own answers.",
            search_aliases=["janus retry", "best of n", "self check", "verify", "loop", "until"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input("model", tooltip="The MODEL of Load JanusFlow, patched or not."),
                io.Clip.Input("clip", tooltip="The CLIP of Load JanusFlow, which judges."),
                io.Vae.Input("vae", tooltip="The VAE of Load JanusFlow, or any SDXL VAE for the official checkpoint."),
                io.Conditioning.Input("positive", tooltip="What to draw."),
                io.Conditioning.Input("negative", tooltip="What to steer away from; the empty prompt means no prompt."),
                prompt_input(),
                seed_input(),
                io.Int.Input(
                    "tries",
                    default=8,
                    min=1,
                    max=256,
                    tooltip="At most so many times; then the best so far is given.",
                ),
                io.Float.Input(
                    "until",
                    default=0.9,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="The score that is enough. 1 makes all tries and gives the best of them.",
                ),
                io.Int.Input(
                    "batch_size",
                    default=1,
                    min=1,
                    max=64,
                    tooltip="Pictures of each try, drawn at once.",
                ),
                *strength_inputs(),
                io.Int.Input(
                    "width",
                    default=0,
                    min=0,
                    max=4096,
                    step=16,
                    advanced=True,
                    tooltip="Pixels, a multiple of 16; 0 is the size the model was trained at.",
                ),
                io.Int.Input("height", default=0, min=0, max=4096, step=16, advanced=True, tooltip="As width."),
                by_input(),
            ],
            outputs=[
                io.Image.Output(display_name="best", tooltip="The picture with the best score."),
                io.Latent.Output(display_name="latent", tooltip="The same as a latent."),
                io.Float.Output(display_name="score", tooltip="How well it shows the prompt, from 0 to 1."),
                io.Int.Output(display_name="seed", tooltip="Its own, with which Flow Sampler draws it again."),
                io.Int.Output(display_name="tries", tooltip="How many it took."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        positive: Any,
        negative: Any,
        prompt: str,
        seed: int,
        tries: int = 8,
        until: float = 0.9,
        batch_size: int = 1,
        by: str = JUDGING[0],
        **settings: Any,
    ) -> io.NodeOutput:
        check_vae(vae)
        best, score, own, done = None, -1.0, seed, 0
        while done < tries and (until >= 1 or score < until):
            first = later(seed, done * batch_size)
            latent = draw(model, positive, negative, first, batch_size=batch_size, **settings)["samples"]
            images = vae.decode(latent)
            scores = scored(clip, images, prompt, by, "Draw until Right")
            row = max(range(batch_size), key=scores.__getitem__)
            if scores[row] > score:
                best, score, own = (images[row : row + 1], latent[row : row + 1]), scores[row], later(first, row)
            done += 1
            told = f"{done} of {tries}: best {score:.4f}"
            show_on_node(told, cls.hidden)
        assert best is not None
        return io.NodeOutput(best[0], {"samples": best[1]}, score, own, done, ui=ui.PreviewText(told))
