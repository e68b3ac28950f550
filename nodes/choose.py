"""Choose Answer: one of given answers about a picture, and how likely each is."""

from __future__ import annotations

import json
from typing import Any

from ..janusflow_core.choices import spelled
from .native.asking import ONE_BY_ONE, conversations, picture_inputs, question_input, shown, together_input
from .native.compat import io


class JanusFlowChoose(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="JanusFlowChoose",
            display_name="Choose Answer (JanusFlow)",
            category="JanusFlow",
            description="Chooses among given answers to a question about a picture, with the probability of each.",
            search_aliases=["janus classify", "classifier", "multiple choice", "route", "vqa", "zero shot"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                *picture_inputs(),
                question_input("What color is the circle?"),
                io.String.Input(
                    "options",
                    multiline=True,
                    default="red\ngreen\nblue",
                    tooltip="The answers that may be given, one a line. A line `yes | Yes` gives one answer two "
                    "spellings, whose chances are added.",
                ),
                together_input(),
            ],
            outputs=[
                io.String.Output(display_name="answer", is_output_list=True, tooltip="The likeliest, as listed."),
                io.Float.Output(display_name="probability", is_output_list=True, tooltip="Its own, from 0 to 1."),
                io.Int.Output(display_name="number", is_output_list=True, tooltip="Its line, counted from 0."),
                io.String.Output(display_name="probabilities", is_output_list=True, tooltip="Of all, as JSON."),
            ],
        )

    @classmethod
    def execute(cls, clip: Any, image: Any, question: str, options: str, pictures: str = ONE_BY_ONE) -> io.NodeOutput:
        spellings = spelled(written(options))
        about = conversations(clip, image, question, pictures, "Choose Answer")
        choices = clip.choose(about, spellings)
        answers = [choice.answer for choice in choices]
        chances = [choice.probabilities[choice.answer] for choice in choices]
        numbers = [list(spellings).index(answer) for answer in answers]
        rounded = [{answer: round(p, 4) for answer, p in choice.probabilities.items()} for choice in choices]
        every = [json.dumps(one, ensure_ascii=False) for one in rounded]
        told = [f"{answer} ({chance:.1%})" for answer, chance in zip(answers, chances, strict=True)]
        return io.NodeOutput(answers, chances, numbers, every, ui=shown(told, cls.hidden))


def written(options: str) -> dict[str, list[str]]:
    """Answers, one a line, and the spellings of each, the first of which names it; what stands there twice stays so."""
    named = dict[str, list[str]]()
    for line in options.splitlines():
        if ways := [way.strip() for way in line.split("|") if way.strip()]:
            named.setdefault(ways[0], []).extend(ways)
    return named
