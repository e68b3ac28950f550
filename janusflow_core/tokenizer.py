"""Text to ids and back: tokenizer.json through `tokenizers`, the chat template, the layout of image tokens.

As in the authors' code the whole prompt is tokenised as one string, so a tag that a user writes out becomes
that tag's token. Where this would break the layout of images, `understanding_ids` raises.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from tokenizers import Tokenizer
from torch import Tensor

from .values import Part, printable, read_optional_json, read_text, validated

SYSTEM_PROMPT = (
    "You are a helpful language and vision assistant. "
    "You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)
USER = "User"
ASSISTANT = "Assistant"
SEPARATORS = ("\n\n", "<｜end▁of▁sentence｜>")
PAD_TOKEN = "<｜▁pad▁｜>"
SPECIAL_FILES = "special_tokens_map.json or tokenizer_config.json"
DEFAULT_SPECIAL = {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>"}


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; an empty content is the turn that the model is to write."""

    role: str
    content: str


class ProcessorConfig(Part):
    """The values of processor_config.json; the defaults are those of the authors' class."""

    image_tag: str = Field(default="<image_placeholder>", min_length=1)
    image_start_tag: str = Field(default="<begin_of_image>", min_length=1)
    image_end_tag: str = Field(default="<end_of_image>", min_length=1)
    image_gen_tag: str = Field(default="<｜begin▁of▁generation｜>", min_length=1)
    num_image_tokens: int = Field(default=576, gt=0)
    add_special_token: bool = False
    sft_format: Literal["deepseek", "deepseek_old"] = "deepseek"  # the same template
    mask_prompt: bool = True
    ignore_id: int = -100

    @model_validator(mode="after")
    def _distinct(self) -> ProcessorConfig:
        if len({self.image_tag, self.image_start_tag, self.image_end_tag, self.image_gen_tag}) < 4:
            raise ValueError("four different tags of pictures")
        return self

    @classmethod
    def from_json_dict(cls, values: Mapping[str, Any]) -> ProcessorConfig:
        """Read a parsed processor_config.json; other keys are ignored, wrong values raise ValueError."""
        return validated(cls, values, "processor_config.json")

    def to_json_dict(self) -> dict[str, Any]:
        """The content of an official processor_config.json with these values."""
        return {"processor_class": "VLChatProcessor", **self.model_dump()}


class JanusTokenizer:
    """Ids, prompts and image layouts of one checkpoint.

    `special` names bos_token, eos_token and additional_special_tokens as special_tokens_map.json does; the
    attributes `json`, `processor` and `special` are all that is needed to build the tokenizer again.
    """

    def __init__(
        self, tokenizer_json: str, processor: ProcessorConfig, special: Mapping[str, Any] | None = None
    ) -> None:
        self.json = tokenizer_json
        self.processor = processor
        self.special = _plain_special({**DEFAULT_SPECIAL, **(special or {})})
        self._tokenizer = _parse(tokenizer_json)
        with _panics_in_words("its tokens cannot be looked up"):
            self._add_missing_tokens()
        self.bos_id = self._id(self.special["bos_token"])
        self.eos_id = self._id(self.special["eos_token"])
        pad_id = self._tokenizer.token_to_id(PAD_TOKEN)
        self.pad_id: int = self.eos_id if pad_id is None else pad_id
        self.image_id = self._id(processor.image_tag)
        self.image_start_id = self._id(processor.image_start_tag)
        self.image_end_id = self._id(processor.image_end_tag)
        self.image_gen_id = self._id(processor.image_gen_tag)
        # One more than the highest id: a file may leave ids out.
        self.vocab_size: int = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())

    @classmethod
    def from_folder(cls, path: str | Path) -> JanusTokenizer:
        """Read a folder in the official layout; raises FileNotFoundError without tokenizer.json."""
        file = Path(path) / "tokenizer.json"
        if not file.is_file():
            raise FileNotFoundError(
                f"{printable(path)} has no tokenizer.json: point to a folder in the official layout"
            )
        special = read_optional_json(file.with_name("tokenizer_config.json"))
        special |= read_optional_json(file.with_name("special_tokens_map.json"))
        processor = ProcessorConfig.from_json_dict(read_optional_json(file.with_name("processor_config.json")))
        return cls(read_text(file), processor, special)

    def encode(self, text: str, bos: bool = True) -> list[int]:
        """The ids of a text, after the begin-of-sentence id if `bos`; never an end-of-sentence id."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            found = f"half a surrogate pair at position {error.start}"
            raise ValueError(f"the text has {found}, expected valid Unicode: remove it") from error
        # The file's own post-processor adds no BOS and other wrappers disagree about it, so it is added here.
        with _panics_in_words("it cannot encode this text"):
            return [self.bos_id] * bos + self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of some ids; bytes that are no UTF-8 become U+FFFD, ids outside the vocabulary nothing."""
        with _panics_in_words("it cannot decode these ids"):
            return self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)

    @cached_property
    def token_texts(self) -> list[str]:
        """What each id stands for by itself, U+FFFD where that is a part of a character."""
        return [self.decode([token], skip_special_tokens=False) for token in range(self.vocab_size)]

    @property
    def whole(self) -> str:
        """A tokenizer.json that holds the added tags as well."""
        return self._tokenizer.to_str()

    def stream(self, skip_special_tokens: bool = True) -> TextStream:
        """A decoder that takes one id at a time; one per running text."""
        return TextStream(self, skip_special_tokens)

    def chat(self, messages: Sequence[Message], system: str = "") -> str:
        """The text of a conversation; blank line and end-of-sentence separate by index, not by role."""
        text = system + SEPARATORS[0] if system else ""
        for index, message in enumerate(messages):
            content = message.content.strip()
            text += f"{message.role}: {content}{SEPARATORS[index % 2]}" if content else f"{message.role}:"
        return text.strip()

    def generation_ids(self, prompt: str) -> list[int]:
        """The ids that a picture is generated from, without the start tag: its place is the time token's."""
        text = self.chat([Message(USER, prompt), Message(ASSISTANT, "")])
        return self.encode(text + self.processor.image_start_tag)[:-1]

    def question_messages(self, question: str, num_images: int = 1) -> list[Message]:
        """The usual conversation: the images, a line break, the question, then the turn to write."""
        images = self.processor.image_tag * num_images + "\n" if num_images else ""
        return [Message(USER, images + question), Message(ASSISTANT, "")]

    def answer_ids(self, answer: str) -> list[int]:
        """The ids of an answer as it stands behind `Assistant:`, without the closing end-of-sentence.

        Raises ValueError for an answer without a word, which is no answer.
        """
        if not answer.strip():
            raise ValueError("an answer is empty, expected a text: leave it out")
        before, whole = (self.encode(f"{ASSISTANT}:{text}", bos=False) for text in ("", f" {answer.strip()}"))
        # A tokenizer that joins the colon with what follows would never let the model say what follows.
        return whole[len(before) :] if whole[: len(before)] == before else self.encode(f" {answer.strip()}", bos=False)

    def understanding_ids(self, messages: Sequence[Message], num_images: int) -> list[int]:
        """The ids of a conversation with each image tag laid out as start, num_image_tokens images, end.

        Raises ValueError when the text's tags and `num_images` disagree.
        """
        return self.conversation_ids(self.chat(messages, SYSTEM_PROMPT), num_images)

    def conversation_ids(self, text: str, num_images: int) -> list[int]:
        """`tagged_ids` with each image id laid out likewise."""
        ids = self.tagged_ids(text, num_images)
        return [out for i in ids for out in (self.picture_ids if i == self.image_id else (i,))]

    def tagged_ids(self, text: str, num_images: int) -> list[int]:
        """The ids of a text that is its own template, one image id for each picture; without tags, images come first.

        Raises ValueError when the text's tags and `num_images` disagree.
        """
        if num_images and self.processor.image_tag not in text:
            text = self.processor.image_tag * num_images + "\n" + text
        ids = self.encode(text)
        self._check_layout(ids, num_images)
        return ids

    @property
    def picture_ids(self) -> list[int]:
        """What one picture's tag is laid out as: start tag, num_image_tokens image tags, end tag."""
        return [self.image_start_id, *[self.image_id] * self.processor.num_image_tokens, self.image_end_id]

    def image_mask(self, ids: Tensor) -> Tensor:
        """Where image embeddings go in ids of any shape (bool): start tag and image tokens, no end tag."""
        return (ids == self.image_id) | (ids == self.image_start_id)

    def pad_left(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Rows as ids (B, T), int64, and attention mask (B, T), bool, False at the padding on the left."""
        if not rows:
            raise ValueError("got no rows to pad, expected at least one list of ids")
        length = max(len(row) for row in rows)
        padded = [[self.pad_id] * (length - len(row)) + list(row) for row in rows]
        starts = torch.tensor([length - len(row) for row in rows])
        return torch.tensor(padded, dtype=torch.long), torch.arange(length) >= starts[:, None]

    def _check_layout(self, ids: list[int], num_images: int) -> None:
        tag, start_tag = self.processor.image_tag, self.processor.image_start_tag
        if self.processor.add_special_token and num_images:
            raise ValueError(
                "add_special_token in processor_config.json is true, expected false: "
                "the layout it makes has no place for the image, so set it to false"
            )
        if (found := ids.count(self.image_id)) != num_images:
            raise ValueError(
                f"the conversation holds {found} {tag} tags, expected {num_images}, one per image: "
                f"write {tag} once for each image and nowhere else"
            )
        if found := ids.count(self.image_start_id):
            raise ValueError(
                f"the conversation holds {found} literal {start_tag} tags, expected none: "
                "remove them, they are added around each image"
            )

    def _add_missing_tokens(self) -> None:
        # First the tokens that the files declare, then the tags, each at the next free id: the order matters.
        p = self.processor
        tags = [p.image_tag, p.image_gen_tag, p.image_start_tag, p.image_end_tag]
        for token in [*self.special["additional_special_tokens"], *tags]:
            if self._tokenizer.token_to_id(token) is None:
                self._tokenizer.add_special_tokens([token])

    def _id(self, token: str) -> int:
        with _panics_in_words("its tokens cannot be looked up"):
            found = self._tokenizer.token_to_id(token)
        if found is None:
            raise ValueError(f"tokenizer.json has no token {token}: use the tokenizer.json of this checkpoint")
        return found


class TextStream:
    """Decodes a growing text: the pieces of `push` and the last one of `flush` join to that of `decode`."""

    def __init__(self, tokenizer: JanusTokenizer, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._pending: list[int] = []

    def push(self, token_id: int) -> str:
        """The text that this id completes; empty while a character still lacks bytes."""
        self._pending.append(token_id)
        # A character spread over several ids shows as U+FFFD until its last byte is there.
        return "" if self._text().endswith("\ufffd") else self.flush()

    def flush(self) -> str:
        """The text of the ids held back, incomplete characters as U+FFFD; to be called at the end."""
        text = self._text()
        self._pending.clear()
        return text

    def _text(self) -> str:
        return self._tokenizer.decode(self._pending, self._skip_special_tokens)


def _parse(tokenizer_json: str) -> Tokenizer:
    with _panics_in_words("it cannot be read"):
        tokenizer = Tokenizer.from_str(tokenizer_json)
        # Settings that somebody saved into the file must not cut or fill a prompt.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer


@contextmanager
def _panics_in_words(what: str) -> Iterator[None]:
    """Turns whatever the library raises about its file into one ValueError.

    It raises bare Exceptions and, where its Rust code gives up, a BaseException that every caller would let through.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"tokenizer.json is broken, {what} ({reason}): copy the file again") from error


def _plain_special(special: Mapping[str, Any]) -> dict[str, Any]:
    """bos_token, eos_token and additional_special_tokens as strings; a file's null means the default."""
    plain: dict[str, Any] = {k: _content(k, special.get(k) or v) for k, v in DEFAULT_SPECIAL.items()}
    key = "additional_special_tokens"
    more = special.get(key) or []
    if not isinstance(more, list):
        raise ValueError(f"{key} in {SPECIAL_FILES} is {more!r}, expected a list of tokens: correct the file")
    plain[key] = [_content(key, token) for token in more]
    return plain


def _content(key: str, token: object) -> str:
    content = token.get("content") if isinstance(token, Mapping) else token
    if not isinstance(content, str) or not content or re.search("[\ud800-\udfff]", content):
        raise ValueError(f"{key} in {SPECIAL_FILES} is {token!r}, expected a token's text: correct the file")
    return content
