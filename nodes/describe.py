"""Describe Image: pictures and a question to words."""

from __future__ import annotations

from typing import Any

from ..janusflow_core.decoding import AT_ONCE, SamplingOptions
from .native.clip import JanusFlowCLIP
from .native.compat import io, show_on_node, ui


class JanusFlowDescribe(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        sampling = [
            io.Float.Input(
                "temperature",
                default=0.1,
                min=0.01,
                max=2.0,
                step=0.01,
                tooltip="Higher is more varied. The authors' demo uses 0.1.",
            ),
            io.Float.Input(
                "top_p",
                default=0.95,
                min=0.01,
                max=1.0,
                step=0.01,
                tooltip="Draw from the most likely words that together have this probability.",
            ),
            io.Int.Input(
                "seed",
                default=0,
                min=0,
                max=0xFFFFFFFFFFFFFFFF,
                control_after_generate=True,
                tooltip="Same seed, same words. Each further picture adds 1.",
            ),
        ]
        return io.Schema(
            node_id="JanusFlowDescribe",
            display_name="Describe Image (JanusFlow)",
            category="JanusFlow",
            description="Answers a question about each picture of a batch. Pictures go in whole, never cropped.",
            search_aliases=["janus caption", "image to text", "vqa", "captioning", "interrogate"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Clip.Input("clip", tooltip="The CLIP of Load JanusFlow."),
                io.Image.Input("image", tooltip="One picture or a batch; each gets its own answer."),
                io.String.Input("question", multiline=True, default="Describe the image.", tooltip="What to ask."),
                io.Int.Input(
                    "max_new_tokens",
                    default=256,
                    min=1,
                    max=8192,
                    tooltip="The answer ends here at the latest; one word is about one and a half tokens.",
                ),
                io.DynamicCombo.Input(
                    "mode",
                    tooltip="greedy always gives the same, most likely words; sample draws them.",
                    options=[io.DynamicCombo.Option("greedy", []), io.DynamicCombo.Option("sample", sampling)],
                ),
            ],
            outputs=[
                io.String.Output(display_name="text", is_output_list=True, tooltip="One answer for each picture.")
            ],
        )

    @classmethod
    def execute(cls, clip: Any, image: Any, question: str, max_new_tokens: int, mode: dict[str, Any]) -> io.NodeOutput:
        if not isinstance(clip, JanusFlowCLIP):
            raise ValueError("Describe Image needs JanusFlow's CLIP: connect the CLIP output of Load JanusFlow.")
        if image.ndim != 4:
            raise ValueError(
                f"Describe Image got pictures of shape {tuple(image.shape)}, expected "
                "(batch, height, width, channels): connect an IMAGE output."
            )
        if not question.strip():
            raise ValueError("The question is empty: write what to ask, for example `Describe the image.`")
        options = SamplingOptions(mode.get("temperature", 0.0), mode.get("top_p", 1.0))
        texts: list[str] = []
        for first in range(0, len(image), AT_ONCE):
            some, seed = image[first : first + AT_ONCE], mode.get("seed", 0) + first
            texts += _answers(clip, some, question, max_new_tokens, options, seed)
            show_on_node("\n\n".join(texts), cls.hidden)
        return io.NodeOutput(texts, ui=ui.PreviewText("\n\n".join(texts)))


def _answers(
    clip: JanusFlowCLIP, images: Any, question: str, max_new_tokens: int, options: SamplingOptions, seed: int
) -> list[str]:
    conversations = [clip.tokenize(question, image=picture[None]) for picture in images]
    seeds = [(seed + k) % 2**64 for k in range(len(images))]
    ids = clip.answer(conversations, max_new_tokens, options, seeds)
    return [clip.decode(row) for row in ids]
