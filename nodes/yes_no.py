"""Ask Yes or No: a boolean for the graph, and how sure the model is."""

from __future__ import annotations

from typing import Any

from ..janusflow_core.understanding import YES_NO, choice_of
from .native.asking import ONE_BY_ONE, conversations, picture_inputs, together_input
from .native.compat import io, show_on_node, ui


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
                io.String.Input(
                    "question",
                    multiline=True,
                    default="Is there a red circle?",
                    tooltip="What to ask about the picture; to be answered by yes or no.",
                ),
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
        scores = clip.weigh(about, [text for ways in YES_NO.values() for text in ways])
        chances = [choice_of(YES_NO, row).probabilities["yes"] for row in scores]
        yes = [chance >= sure for chance in chances]
        told = "\n".join(f"{chance:.1%} yes" for chance in chances)
        show_on_node(told, cls.hidden)
        return io.NodeOutput(yes, chances, ui=ui.PreviewText(told))
