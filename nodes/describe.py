"""Describe Image: pictures and a question to words."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from ..janusflow_core.captions import PRESETS
from ..janusflow_core.decoding import SamplingOptions
from ..janusflow_core.tokenizer import TextStream
from .native.clip import JanusFlowCLIP
from .native.compat import io, show_on_node, ui

OWN, ONE_BY_ONE, TOGETHER = "own question", "one by one", "together"
EVERY = 0.2  # seconds between two looks at answers that are being written


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
            description="Answers a question about each picture of a batch, or about all; none is cropped.",
            search_aliases=["janus caption", "image to text", "vqa", "captioning", "interrogate"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Clip.Input("clip", tooltip="The CLIP of Load JanusFlow."),
                io.Image.Input("image", tooltip="One picture or a batch."),
                io.Combo.Input(
                    "ask",
                    options=[OWN, *PRESETS],
                    default=OWN,
                    tooltip="The question below, or one of: " + "; ".join(f"{k}: {v}" for k, v in PRESETS.items()),
                ),
                io.String.Input(
                    "question",
                    multiline=True,
                    default="Describe the image.",
                    tooltip="What to ask, where `ask` is own question.",
                ),
                io.Combo.Input(
                    "pictures",
                    options=[ONE_BY_ONE, TOGETHER],
                    default=ONE_BY_ONE,
                    tooltip="An answer for each picture of a batch, or one about all of them.",
                ),
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
        if not isinstance(clip, JanusFlowCLIP):
            raise ValueError("Describe Image needs JanusFlow's CLIP: connect the CLIP output of Load JanusFlow.")
        if image.ndim != 4:
            raise ValueError(
                f"Describe Image got pictures of shape {tuple(image.shape)}, expected "
                "(batch, height, width, channels): connect an IMAGE output."
            )
        question = PRESETS.get(ask, question)
        if not question.strip():
            raise ValueError("The question is empty: write what to ask, for example `Describe the image.`")
        asked = [image] if pictures == TOGETHER else [picture[None] for picture in image]
        conversations = [clip.tokenize(question, image=some) for some in asked]
        options = SamplingOptions(mode.get("temperature", 0.0), mode.get("top_p", 1.0))
        seeds = [(mode.get("seed", 0) + k) % 2**64 for k in range(len(asked))]
        live = Live([clip.tokenizer.core.stream() for _ in asked], cls.hidden)
        texts = [clip.decode(ids) for ids in clip.answer(conversations, max_new_tokens, options, seeds, live)]
        show_on_node(joined(texts), cls.hidden)
        return io.NodeOutput(texts, ui=ui.PreviewText(joined(texts)))


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
