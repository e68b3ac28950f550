"""Describe Image: pictures and a question to words."""

from __future__ import annotations

from typing import Any

from ..janusflow_core.seeds import counted
from .native.asking import (
    ONE_BY_ONE,
    OWN,
    Live,
    answer_inputs,
    asked,
    conversations,
    joined,
    picture_inputs,
    question_inputs,
    sampling_options,
    together_input,
)
from .native.compat import io, show_on_node, ui


class JanusFlowDescribe(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="JanusFlowDescribe",
            display_name="Describe Image (JanusFlow)",
            category="JanusFlow",
            description="Answers a question about each picture of a batch, or about all; none is cropped.",
            search_aliases=["janus caption", "image to text", "vqa", "captioning", "interrogate"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                *picture_inputs(),
                *question_inputs(),
                together_input(),
                *answer_inputs("Each further picture adds 1."),
            ],
            outputs=[
                io.String.Output(display_name="text", is_output_list=True, tooltip="A list of answers, in order.")
            ],
        )

    @classmethod
    def execute(
        cls,
        clip: Any,
        image: Any,
        question: str,
        max_new_tokens: int,
        mode: dict[str, Any],
        ask: str = OWN,
        pictures: str = ONE_BY_ONE,
    ) -> io.NodeOutput:
        about = conversations(clip, image, asked(ask, question), pictures, "Describe Image")
        seeds = counted(mode.get("seed", 0), len(about))
        live = Live([clip.tokenizer.core.stream() for _ in about], cls.hidden)
        answers = clip.answer(about, max_new_tokens, sampling_options(mode), seeds, live)
        texts = [clip.decode(ids) for ids in answers]
        show_on_node(joined(texts), cls.hidden)
        return io.NodeOutput(texts, ui=ui.PreviewText(joined(texts)))
