"""Ask Yes or No: a boolean for the graph, and how sure the model is."""

from __future__ import annotations

from typing import Any

from ..janusflow_core.scoring import YES_NO
from .native.asking import ONE_BY_ONE, conversations, picture_inputs, question_input, shown, together_input
from .native.compat import io


class JanusFlowYesNo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="JanusFlowYesNo",
            display_name="Ask Yes or No (JanusFlow)",
            category="JanusFlow",
            description="Answers a question about a picture with true or false, for nodes that decide.",
            search_aliases=["janus boolean", "condition", "if", "switch", "route", "detect"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                *picture_inputs(),
                question_input("Is there a red circle?", "What to ask about the picture; to be answered by yes or no."),
                io.Float.Input(
                    "sure",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="How likely yes must be to count: above 0.5 in doubt no, below 0.5 in doubt yes.",
                ),
                together_input(),
            ],
            outputs=[
                io.Boolean.Output(display_name="yes", is_output_list=True, tooltip="Whether yes is likely enough."),
                io.Float.Output(display_name="probability", is_output_list=True, tooltip="Of yes, from 0 to 1."),
            ],
        )

    @classmethod
    def execute(
        cls, clip: Any, image: Any, question: str, sure: float = 0.5, pictures: str = ONE_BY_ONE
    ) -> io.NodeOutput:
        about = conversations(clip, image, question, pictures, "Ask Yes or No")
        chances = [choice.probabilities["yes"] for choice in clip.choose(about, YES_NO)]
        yes = [chance >= sure for chance in chances]
        told = [f"{chance:.1%} yes" for chance in chances]
        return io.NodeOutput(yes, chances, ui=shown(told, cls.hidden))
