"""A conversation about pictures as a value: who said what and what was shown; to JSON and back."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any, Literal

from PIL import Image

from .image import AnyPicture, open_image, opened, to_pil
from .tokenizer import ASSISTANT, SYSTEM_PROMPT, USER, JanusTokenizer, Message
from .values import printable

Role = Literal["user", "assistant"]
ROLES: dict[Role, str] = {"user": USER, "assistant": ASSISTANT}  # in JSON -> in the model's template
PNG = "data:image/png;base64,"


@dataclass(frozen=True)
class Turn:
    """What one side says; a user's turn may show pictures, RGB in 8 bits."""

    role: Role
    text: str
    pictures: tuple[Image.Image, ...] = ()


@dataclass(frozen=True)
class Chat:
    """Turns of a user and of the model, who take turns, and what the model is told before all of them.

    A value: whatever is said makes a new chat, and this one can go on otherwise.
    """

    turns: tuple[Turn, ...] = ()
    system: str = SYSTEM_PROMPT

    def ask(self, text: str, pictures: Sequence[AnyPicture] = ()) -> Chat:
        """The user says something and shows pictures, at the place where the turn begins.

        Pictures are of any kind that `describe` takes. Said after something that is not answered yet, it becomes a part
        of that turn. Raises ValueError for a turn without words or pictures, and what `open_image` raises.
        """
        shown = tuple(to_pil(opened(picture)).convert("RGB") for picture in pictures)
        if not text.strip() and not shown:
            raise ValueError("a turn is empty: write what to say, or show a picture.")
        if not self.open:
            return replace(self, turns=(*self.turns, Turn("user", text.strip(), shown)))
        *before, last = self.turns
        said = "\n".join(filter(None, (last.text, text.strip())))
        return replace(self, turns=(*before, Turn("user", said, last.pictures + shown)))

    def answer(self, text: str) -> Chat:
        """The model answers. Raises ValueError for an empty answer, or where nothing was asked."""
        if not self.open:
            raise ValueError("there is nothing to answer: add a turn of the user first.")
        if not text.strip():
            raise ValueError("an answer is empty: write what the model says.")
        return replace(self, turns=(*self.turns, Turn("assistant", text.strip())))

    def replied(self, text: str) -> Chat:
        """`answer` by a model, which may have said nothing: then ValueError says so."""
        if not text.strip():
            raise ValueError("the model answered nothing: ask otherwise.")
        return self.answer(text)

    @property
    def open(self) -> bool:
        """Whether the user said something that is not answered yet."""
        return bool(self.turns) and self.turns[-1].role == "user"

    @property
    def pictures(self) -> list[Image.Image]:
        """All that was shown, in order."""
        return [picture for turn in self.turns for picture in turn.pictures]

    @property
    def text(self) -> str:
        """All turns as one reads them, a picture as [picture]."""
        lines = (
            f"{ROLES[t.role]}: {' '.join(['[picture]'] * len(t.pictures) + [t.text])}".rstrip() for t in self.turns
        )
        return "\n".join(lines)

    def prompt(self, tokenizer: JanusTokenizer) -> str:
        """The text that the model is to go on, with the tags of the pictures (see `JanusTokenizer.tagged_ids`).

        Raises ValueError where nothing is left to answer.
        """
        if not self.open:
            raise ValueError("there is nothing to answer: add a turn of the user first.")
        tag = tokenizer.processor.image_tag
        said = [
            Message(ROLES[turn.role], tag * len(turn.pictures) + "\n" * bool(turn.pictures) + turn.text)
            for turn in self.turns
        ]
        return tokenizer.chat([*said, Message(ASSISTANT, "")], self.system)

    def to_json(self) -> str:
        """JSON as OpenAI's chat API takes it, pictures in it as PNG."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return json.dumps({"messages": system + [_message(turn) for turn in self.turns]}, ensure_ascii=False, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Chat:
        """The reverse, also of messages that others wrote; a chat without system prompt has none.

        Nothing is fetched: pictures must be in it. Raises ValueError that says which message is wrong, and how.
        """
        chat = cls(system="")
        for number, message in enumerate(_messages(text), 1):
            try:
                chat = chat._with(message, first=number == 1)
            except ValueError as error:
                raise ValueError(f"message {number} of the chat is wrong: {error}") from error
        return chat

    def _with(self, message: object, first: bool) -> Chat:
        role, words, pictures = _read(message)
        if role == "user":
            return self.ask(words, pictures)
        if pictures:
            raise ValueError(f"pictures of the {role}, expected them in turns of the user.")
        if role == "assistant":
            return self.answer(words)
        if not first:
            raise ValueError("a system prompt must come first.")
        return replace(self, system=words)


def marks(ids: Sequence[int], pictures: Sequence[Image.Image], tokenizer: JanusTokenizer) -> list[int | bytes]:
    """What tells a conversation's tokens apart: their ids, with pictures laid out, or what it shows for a picture's."""
    told, left, shown = list[int | bytes](), iter(pictures), b""
    for token in ids:
        if token == tokenizer.image_start_id:
            shown = fingerprint(next(left))
        told.append(shown if token in (tokenizer.image_start_id, tokenizer.image_id) else token)
    return told


def fingerprint(picture: Image.Image) -> bytes:
    """A few bytes that tell a picture from all others."""
    return blake2b(repr((picture.mode, picture.size)).encode() + picture.tobytes(), digest_size=16).digest()


def _message(turn: Turn) -> dict[str, Any]:
    if not turn.pictures:
        return {"role": turn.role, "content": turn.text}
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": _encoded(p)}} for p in turn.pictures]
    return {"role": turn.role, "content": parts + ([{"type": "text", "text": turn.text}] if turn.text else [])}


def _encoded(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return PNG + base64.b64encode(file.getvalue()).decode("ascii")


def _messages(text: str) -> list[object]:
    try:
        found = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"this chat is no JSON ({error}): read what Save Chat or `to_json` wrote.") from error
    if isinstance(found, Mapping):
        found = found.get("messages")
    if not isinstance(found, list):
        raise ValueError('this JSON is no chat: expected {"messages": [{"role": …, "content": …}, …]}.')
    return found


def _read(message: object) -> tuple[str, str, list[Image.Image]]:
    """Role, words and pictures of a message."""
    role, content = (message.get(key) for key in ("role", "content")) if isinstance(message, Mapping) else (None, None)
    if role not in ("system", *ROLES):
        raise ValueError(f"its role is {printable(role)}, expected system, user or assistant.")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list):
        raise ValueError("its content is neither a text nor a list of parts.")
    words, pictures = list[str](), list[Image.Image]()
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            words.append(part["text"])
        elif kind == "image_url":
            pictures.append(_decoded(part.get("image_url")))
        else:
            raise ValueError(f"a part is of type {printable(kind)}, expected text or image_url.")
    return str(role), "\n".join(words), pictures


def _decoded(place: object) -> Image.Image:
    url = place.get("url") if isinstance(place, Mapping) else place
    head, _, data = url.partition(",") if isinstance(url, str) else ("", "", "")
    if not head.startswith("data:image/") or not head.endswith(";base64"):
        raise ValueError("a picture is not in the chat itself, expected data:image/png;base64,…: nothing is fetched.")
    try:
        return open_image(io.BytesIO(base64.b64decode(data, validate=True)))
    except ValueError as error:  # of base64 or of Pillow, both with words that tell nothing of a chat
        raise ValueError("a picture in it cannot be read: save it again as PNG or JPEG in base64.") from error
