"""What the nodes that write about pictures share: the inputs that say what is asked and how words are chosen."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from ...janusflow_core.captions import PRESETS
from ...janusflow_core.decoding import SamplingOptions
from ...janusflow_core.tokenizer import TextStream
from .clip import check_clip
from .compat import io, show_on_node, ui
from .refusals import check_pictures
from .tokens import Tokens

OWN = "own question"
ONE_BY_ONE, TOGETHER = "one by one", "together"
EVERY = 0.2  # seconds between two looks at answers that are being written


def picture_inputs() -> list[Any]:
    """The CLIP and the pictures that a question is about."""
    return [
        io.Clip.Input("clip", tooltip="The CLIP of Load JanusFlow."),
        io.Image.Input("image", tooltip="One picture or a batch."),
    ]


def together_input() -> Any:
    return io.Combo.Input(
        "pictures",
        options=[ONE_BY_ONE, TOGETHER],
        default=ONE_BY_ONE,
        tooltip="An answer for each picture of a batch, or one about all of them.",
    )


def question_input(default: str, tooltip: str = "What to ask about the picture.") -> Any:
    return io.String.Input("question", multiline=True, default=default, tooltip=tooltip)


def shown(told: Sequence[str], hidden: Any) -> Any:
    """Shows answers on the node at once, and gives what keeps them there."""
    text = "\n".join(told)
    show_on_node(text, hidden)
    return ui.PreviewText(text)


def conversations(clip: Any, image: Any, question: str, pictures: str, node: str) -> list[Tokens]:
    """A question about each picture of a batch, or about all; raises ValueError in the name of a node."""
    check_clip(clip, node)
    check_pictures(image, node)
    groups = [image] if pictures == TOGETHER else [picture[None] for picture in image]
    return [clip.tokenize(asked(OWN, question), image=group) for group in groups]


def question_inputs() -> list[Any]:
    return [
        io.Combo.Input(
            "ask",
            options=[OWN, *PRESETS],
            default=OWN,
            tooltip="The question below, or one of: " + "; ".join(f"{name}: {text}" for name, text in PRESETS.items()),
        ),
        io.String.Input(
            "question",
            multiline=True,
            default="Describe the image.",
            tooltip="What to ask, where `ask` is own question.",
        ),
    ]


def answer_inputs(further: str) -> list[Any]:
    """`further` says what becomes of the seed from picture to picture."""
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
            tooltip=f"Same seed, same words. {further}",
        ),
    ]
    return [
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
    ]


def asked(ask: str, question: str) -> str:
    """The question that two inputs name; raises ValueError where it is empty."""
    question = PRESETS.get(ask, question)
    if not question.strip():
        raise ValueError("The question is empty: write what to ask, for example `Describe the image.`")
    return question


def sampling_options(mode: Mapping[str, Any]) -> SamplingOptions:
    return SamplingOptions(mode.get("temperature", 0.0), mode.get("top_p", 1.0))


class Live:
    """Shows answers on the node while they are written, a few times a second, with their speed."""

    def __init__(self, streams: Sequence[TextStream], hidden: Any) -> None:
        self._streams, self._hidden = streams, hidden
        self._texts, self._tokens = ["" for _ in streams], 0
        self._started = self._shown = time.monotonic()

    def __call__(self, row: int, token: int) -> None:
        self._tokens += 1
        self._texts[row] += self._streams[row].push(token)
        now = time.monotonic()
        if now - self._shown >= EVERY:
            self._shown = now
            speed = self._tokens / (now - self._started)
            show_on_node(f"{joined(self._texts)}\n\n({speed:.1f} tokens/s)", self._hidden)


def joined(texts: Sequence[str]) -> str:
    """Answers below each other; those that have not begun are left out."""
    return "\n\n".join(text.strip() for text in texts if text.strip())
