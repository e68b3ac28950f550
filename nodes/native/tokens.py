"""JanusFlow's tokenizer as ComfyUI sees one: lists of tokens with weights, a picture as an entry of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ...janusflow_core.chat import Chat
from ...janusflow_core.checkpoint import Checkpoint
from ...janusflow_core.image import pixels
from ...janusflow_core.tokenizer import SYSTEM_PROMPT, JanusTokenizer
from ...janusflow_core.weights import TOKENIZER_KEY, json_tensor

NAME = "janusflow"
Row = Sequence[tuple[Any, ...]]  # (token id or picture, weight, ...)
Tokens = dict[str, list[Row]]


class TokenizerFacade:
    """ComfyUI's view of the tokenizer: lists of (token id, weight), a picture as one entry of its own."""

    def __init__(self, checkpoint: Checkpoint, core: JanusTokenizer) -> None:
        self.core, self.image = core, checkpoint.image

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **options: Any) -> Tokens:
        """A prompt for the flow (CLIPTextEncode), or a conversation where `image` is spoken of (TextGenerate).

        Prompt weights like (red:1.2) mean nothing to a language model: parentheses are read as they stand. The empty
        prompt is BOS alone, the unconditional branch.
        """
        entries = self._conversation(text, **options) if "image" in options else self._prompt(text)
        return {NAME: [[(entry, 1.0, 0) if return_word_ids else (entry, 1.0) for entry in entries]]}

    def _prompt(self, text: str) -> list[int]:
        return self.core.generation_ids(text) if text.strip() else [self.core.bos_id]

    def _conversation(
        self, text: str, image: Tensor | None = None, skip_template: bool = False, **unused: Any
    ) -> list[Any]:
        pictures = [] if image is None else [picture[None] for picture in image]
        if not skip_template:
            text = self.core.chat(self.core.question_messages(text, len(pictures)), SYSTEM_PROMPT)
        ids, left = self.core.tagged_ids(text, len(pictures)), iter(pictures)
        return [{"type": "image", "data": next(left)} if token == self.core.image_id else token for token in ids]

    def chat(self, chat: Chat) -> Row:
        """A conversation of several turns, up to the answer that it waits for."""
        ids, left = self.core.tagged_ids(chat.prompt(self.core), len(chat.pictures)), iter(chat.pictures)
        return [(_picture(pixels(next(left))) if token == self.core.image_id else token, 1.0) for token in ids]

    def behind(self, row: Row, known: int) -> Row:
        """What follows the first `known` ids of a row that is laid out; they end outside a picture."""
        for number, (entry, *_) in enumerate(row):
            if known <= 0:
                return row[number:]
            known -= len(self.core.picture_ids) if is_picture(entry) else 1
        return row[len(row) :]

    def lay_out(self, row: Row) -> list[int]:
        """The ids of a row, every picture in it as its start, image and end tags."""
        return [token for entry, *_ in row for token in (self.core.picture_ids if is_picture(entry) else (entry,))]

    def untokenize(self, pairs: Sequence[tuple[Any, ...]]) -> list[tuple[Any, str]]:
        return [(pair, "<image>" if is_picture(pair[0]) else self.core.decode([pair[0]], False)) for pair in pairs]

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return self.core.decode(token_ids, skip_special_tokens).strip()

    def state_dict(self) -> dict[str, Tensor]:
        """What CheckpointSave must write beside the weights, so that our loader can read the file again."""
        parts = {
            "processor_config": self.core.processor.to_json_dict(),
            "special_tokens_map": dict(self.core.special),
            "preprocessor_config": self.image.to_json_dict(),
        }
        texts = {TOKENIZER_KEY: self.core.json, **{key: json.dumps(value) for key, value in parts.items()}}
        return {key: json_tensor(text) for key, text in texts.items()}


def _picture(pixels: Tensor) -> dict[str, Any]:
    """Pixels (C, H, W) as an entry of a row."""
    return {"type": "image", "data": pixels.movedim(0, 2)[None]}


def is_picture(entry: Any) -> bool:
    """Whether an entry of a row is no token."""
    return isinstance(entry, dict)
