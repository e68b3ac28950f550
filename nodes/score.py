"""Score Image: how well a picture shows a prompt, by the model's own answers; and the best pictures of a batch."""

from __future__ import annotations

from typing import Any

from .native.asking import shown
from .native.compat import io
from .native.judging import JUDGING, by_input, prompt_input, scored


class JanusFlowScore(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="JanusFlowScore",
            display_name="Score Image (JanusFlow)",
            category="JanusFlow",
            description="Says how well each picture shows a prompt, from 0 to 1, and gives back the best of a batch.",
            search_aliases=["janus score", "rank", "best of", "clip score", "verify", "self check", "aesthetic"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Clip.Input("clip", tooltip="The CLIP of Load JanusFlow."),
                io.Image.Input("image", tooltip="One picture or a batch, drawn by any model."),
                prompt_input(),
                io.Int.Input(
                    "keep",
                    default=1,
                    min=1,
                    max=256,
                    tooltip="How many of the best go on; more than there are gives all, the best first.",
                ),
                by_input(),
            ],
            outputs=[
                io.Image.Output(display_name="best", tooltip="The best, the best first."),
                io.Float.Output(display_name="scores", is_output_list=True, tooltip="Of every picture, as they came."),
                io.Int.Output(display_name="order", is_output_list=True, tooltip="Numbers, from 0, best first."),
            ],
        )

    @classmethod
    def execute(cls, clip: Any, image: Any, prompt: str, keep: int = 1, by: str = JUDGING[0]) -> io.NodeOutput:
        scores = scored(clip, image, prompt, by, "Score Image")
        order = sorted(range(len(scores)), key=lambda number: -scores[number])
        told = [f"{number}: {scores[number]:.4f}" for number in order]
        return io.NodeOutput(image[order[:keep]], scores, order, ui=shown(told, cls.hidden))
