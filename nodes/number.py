"""Ask for a Number: a count or a measure of a picture, as a number that the graph can use."""

from __future__ import annotations

import math
from typing import Any

from ..janusflow_core.decoding import SamplingOptions
from ..janusflow_core.spelling import Numbers, Spelled
from .native.asking import ONE_BY_ONE, conversations, picture_inputs, question_input, shown, together_input
from .native.compat import io


class JanusFlowNumber(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="JanusFlowNumber",
            display_name="Ask for a Number (JanusFlow)",
            category="JanusFlow",
            description="Answers a question about a picture with a number of a range, whatever the model would say.",
            search_aliases=["janus count", "counting", "how many", "rating", "vqa"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                *picture_inputs(),
                question_input("How many objects are there?"),
                io.Float.Input(
                    "minimum",
                    default=0.0,
                    min=-1000000.0,
                    max=1000000.0,
                    step=1.0,
                    tooltip="No number below it is given.",
                ),
                io.Float.Input(
                    "maximum",
                    default=100.0,
                    min=-1000000.0,
                    max=1000000.0,
                    step=1.0,
                    tooltip="No number above it is given.",
                ),
                io.Int.Input(
                    "decimals", default=0, min=0, max=6, tooltip="At most so many; 0 gives whole numbers alone."
                ),
                together_input(),
            ],
            outputs=[
                io.Int.Output(display_name="whole", is_output_list=True, tooltip="The number, rounded down."),
                io.Float.Output(display_name="number", is_output_list=True, tooltip="The number."),
            ],
        )

    @classmethod
    def execute(
        cls,
        clip: Any,
        image: Any,
        question: str,
        minimum: float = 0.0,
        maximum: float = 100.0,
        decimals: int = 0,
        pictures: str = ONE_BY_ONE,
    ) -> io.NodeOutput:
        numbers = Numbers(minimum, maximum, decimals)
        about = conversations(clip, image, question, pictures, "Ask for a Number")
        rule = Spelled(clip.tokenizer.core, numbers.begins, numbers.ends, numbers.takes)
        seeds = [0] * len(about)  # nothing is drawn: the likeliest number of the range
        answers = clip.answer(about, numbers.longest + 2, SamplingOptions(), seeds, rules=[rule])
        values = [numbers.value(clip.decode(ids)) for ids in answers]
        told = [*map(str, values)]
        return io.NodeOutput([math.floor(v) for v in values], [float(v) for v in values], ui=shown(told, cls.hidden))
