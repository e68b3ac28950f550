"""Encode Prompt: words to what the flow looks back at."""

from __future__ import annotations

from typing import Any

from .native.clip import check_clip
from .native.compat import io


class JanusFlowEncodePrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="JanusFlowEncodePrompt",
            display_name="Encode Prompt (JanusFlow)",
            category="JanusFlow",
            description="Turns a prompt into positive and negative conditioning, as two CLIP Text Encode nodes do.",
            search_aliases=["janus prompt", "text encode", "conditioning"],
            inputs=[
                io.Clip.Input("clip", tooltip="The CLIP of Load JanusFlow."),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    default="a red circle left of a blue square",
                    tooltip="What to draw. Plain sentences; (weights:1.2) have no meaning here.",
                ),
                io.String.Input(
                    "negative",
                    multiline=True,
                    dynamic_prompts=True,
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="What to steer away from. Empty is what the model was trained with.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="What to draw, for a sampler."),
                io.Conditioning.Output(
                    display_name="negative", tooltip="What stands against it: without words, nothing."
                ),
            ],
        )

    @classmethod
    def execute(cls, clip: Any, text: str, negative: str = "") -> io.NodeOutput:
        check_clip(clip, "Encode Prompt")
        if not text.strip():
            raise ValueError(
                "The prompt is empty: write what to draw, or use CLIP Text Encode with an empty text for an "
                "unconditional picture."
            )
        encoded = [clip.encode_from_tokens_scheduled(clip.tokenize(words)) for words in (text, negative)]
        return io.NodeOutput(*encoded)
