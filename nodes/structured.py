"""Ask for JSON: what a picture shows, in the form that a schema asks for."""

from __future__ import annotations

import json
from typing import Any

from ..janusflow_core.decoding import SamplingOptions
from ..janusflow_core.schemas import SchemaRule
from .native.asking import ONE_BY_ONE, conversations, picture_inputs, question_input, shown, together_input
from .native.compat import io

EXAMPLE = {
    "type": "object",
    "properties": {"color": {"enum": ["red", "green", "blue"]}, "sure": {"type": "boolean"}},
    "required": ["color", "sure"],
}


class JanusFlowJSON(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="JanusFlowJSON",
            display_name="Ask for JSON (JanusFlow)",
            category="JanusFlow",
            description="Answers a question about a picture with JSON that satisfies a schema, by construction.",
            search_aliases=["janus json", "structured output", "schema", "extract", "tags"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                *picture_inputs(),
                question_input(
                    "What color is the circle?",
                    "What to ask about the picture. Say what the schema's fields mean where names do not.",
                ),
                io.String.Input(
                    "schema",
                    multiline=True,
                    default=json.dumps(EXAMPLE, indent=2),
                    tooltip="A JSON schema. Texts, lists and numbers without bounds get some, so that answers end. "
                    "Needs llguidance: pip install llguidance",
                ),
                io.Int.Input(
                    "max_new_tokens",
                    default=512,
                    min=1,
                    max=8192,
                    tooltip="An answer that is not whole by then is refused with a sentence.",
                ),
                together_input(),
            ],
            outputs=[
                io.String.Output(display_name="json", is_output_list=True, tooltip="One JSON text for each answer.")
            ],
        )

    @classmethod
    def execute(
        cls,
        clip: Any,
        image: Any,
        question: str,
        schema: str,
        max_new_tokens: int = 512,
        pictures: str = ONE_BY_ONE,
    ) -> io.NodeOutput:
        about = conversations(clip, image, question, pictures, "Ask for JSON")
        rule = SchemaRule(clip.tokenizer.core, schema)
        answers = clip.answer(about, max_new_tokens, SamplingOptions(), [0] * len(about), rules=[rule])
        texts = [json.dumps(rule.value(clip.decode(ids)), ensure_ascii=False) for ids in answers]
        return io.NodeOutput(texts, ui=shown(texts, cls.hidden))
