"""Chats: the template, JSON there and back, what is refused, and answers that memory does not change."""

import base64
import io
import json
from typing import Any

import numpy as np
import pytest
import torch
from golden import micro, micro_pipeline, picture
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops
from torch import Tensor

from janusflow_core import Chat, JanusFlowPipeline
from janusflow_core.chat import marks
from janusflow_core.tokenizer import SYSTEM_PROMPT, Message
from janusflow_core.world.scenes import COLORS, Object, Scene, render


def shown(color: str = "red", shape: str = "circle") -> Image.Image:
    return Image.fromarray(render(Scene((250, 250, 250), (Object(shape, color, 40, 40, 14, COLORS[color]),))))


def read_by(pipe: JanusFlowPipeline, chat: Chat, **how: Any) -> tuple[Chat, list[int]]:
    """A reply, and how many tokens went through the model at each of its calls."""
    seen: list[int] = []
    hook = pipe.model.language_model.model.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    try:
        return pipe.reply(chat, **how), seen
    finally:
        hook.remove()


def test_the_template_is_the_authors():
    tokenizer = micro().tokenizer
    chat = Chat().ask(" Look. ", [shown(), shown("blue")]).answer("I see. ").ask("And?")
    tag, end = tokenizer.processor.image_tag, tokenizer.special["eos_token"]
    expected = f"{SYSTEM_PROMPT}\n\nUser: {tag}{tag}\nLook.\n\nAssistant: I see.{end}User: And?\n\nAssistant:"
    assert chat.prompt(tokenizer) == expected
    assert chat.text == "User: [picture] [picture] Look.\nAssistant: I see.\nUser: And?"
    assert Chat(system="").ask("Hi").prompt(tokenizer) == "User: Hi\n\nAssistant:"


def test_what_is_said_before_an_answer_is_one_turn():
    chat = Chat().ask("One", [shown()]).ask("two", [shown("blue")]).ask("", [shown("green")])
    assert len(chat.turns) == 1 and chat.turns[0].text == "One\ntwo"
    assert [picture.getpixel((40, 40)) for picture in chat.pictures] == [COLORS[c] for c in ("red", "blue", "green")]
    assert Chat().ask("", [shown()]).open and not Chat().open


def test_pictures_of_every_kind_become_rgb_in_8_bits(tmp_path):
    shown().save(file := tmp_path / "a.png")
    kinds = [file, str(file), np.asarray(shown()), torch.from_numpy(np.array(shown()) / 255), shown().convert("RGBA")]
    for found in Chat().ask("Look", kinds).pictures:
        assert found.mode == "RGB" and not ImageChops.difference(found, shown()).getbbox()


def test_a_chat_is_a_value():
    begun = Chat().ask("Who are you?")
    one, other = begun.answer("Nobody."), begun.answer("Odysseus.")
    assert len(begun.turns) == 1 and one != other and begun == Chat().ask("Who are you?")


WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
PICTURES = st.lists(st.builds(shown, st.sampled_from([*COLORS])), max_size=2)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(WORDS, PICTURES, WORDS), max_size=3), WORDS | st.just(""), st.booleans())
def test_json_brings_back_every_chat(exchanges, system, still_open):
    chat = Chat(system=system)
    for question, pictures, answer in exchanges:
        chat = chat.ask(question, pictures).answer(answer)
    chat = chat.ask("?") if still_open else chat
    back = Chat.from_json(chat.to_json())
    assert back.system == system and [(t.role, t.text) for t in back.turns] == [(t.role, t.text) for t in chat.turns]
    for one, other in zip(chat.pictures, back.pictures, strict=True):
        assert one.size == other.size and not ImageChops.difference(one, other).getbbox()


def test_chats_of_other_programs_are_read():
    file = io.BytesIO()
    shown().save(file, format="JPEG", quality=95)
    url = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
    parts = [{"type": "text", "text": "Look:"}, {"type": "image_url", "image_url": {"url": url, "detail": "low"}}]
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": "what is it?"}], "name": "me"}]
    for text in (json.dumps(messages), json.dumps({"model": "x", "messages": messages})):
        chat = Chat.from_json(text)
        assert chat.system == "" and chat.turns[0].text == "Look:\nwhat is it?" and chat.pictures[0].size == (96, 96)


def messages(*said: tuple[str, Any]) -> str:
    return json.dumps({"messages": [{"role": role, "content": content} for role, content in said]})


def image_part(url: object) -> list[dict[str, Any]]:
    return [{"type": "image_url", "image_url": {"url": url}}]


UNREADABLE = "message 1 of the chat is wrong: a picture in it cannot be read"
NO_PICTURE = "data:image/png;base64," + base64.b64encode(b"no picture").decode()


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("{", "this chat is no JSON"),
        ("[" * 100_000, "this chat is no JSON"),
        ("{}", "this JSON is no chat: expected"),
        ('{"messages": {}}', "this JSON is no chat: expected"),
        ("[1]", "message 1 of the chat is wrong: its role is None"),
        (messages(("user", "a"), ("tool", "b")), "message 2 of the chat is wrong: its role is tool, expected system"),
        (messages(("user", 1)), "its content is neither a text nor a list of parts"),
        (messages(("user", [{"type": "input_audio"}])), "a part is of type input_audio, expected text or image_url"),
        (messages(("user", ["a"])), "a part is of type None"),
        (messages(("user", " ")), "a turn is empty"),
        (messages(("assistant", "a")), "there is nothing to answer"),
        (
            messages(("user", "a"), ("assistant", "b"), ("assistant", "c")),
            "message 3 of the chat is wrong: there is no",
        ),
        (messages(("user", "a"), ("assistant", "")), "an answer is empty"),
        (messages(("user", "a"), ("system", "b")), "a system prompt must come first"),
        (messages(("user", image_part("https://example.org/a.png"))), "nothing is fetched"),
        (messages(("user", image_part("file:///etc/passwd"))), "nothing is fetched"),
        (messages(("user", image_part(None))), "nothing is fetched"),
        (messages(("user", image_part("data:text/html;base64,AAAA"))), "nothing is fetched"),
        (
            messages(("user", image_part("data:image/png;base64,äö"))),
            UNREADABLE,
        ),
        (messages(("user", image_part(NO_PICTURE))), UNREADABLE),
        (messages(("system", image_part(NO_PICTURE))), UNREADABLE),
    ],
)
def test_what_is_no_chat_is_refused_in_a_sentence(text, complaint):
    with pytest.raises(ValueError, match=complaint):
        Chat.from_json(text)


def test_the_assistant_shows_no_pictures():
    chat = json.loads(Chat().ask("Look", [shown()]).to_json())["messages"]
    chat[1]["role"] = "assistant"
    with pytest.raises(ValueError, match="message 2 of the chat is wrong: pictures of the assistant"):
        Chat.from_json(json.dumps(chat))


# --- the model goes on -------------------------------------------------------------------------------------------


def test_a_reply_is_what_the_model_says_to_the_same_messages():
    pipe, one, other = micro(), picture("wide"), picture("gray")
    tag = pipe.tokenizer.processor.image_tag
    said = [Message("User", f"{tag}{tag}\nCompare."), Message("Assistant", "They differ."), Message("User", "How?")]
    [expected] = pipe.converse([[*said, Message("Assistant", "")]], [[one, other]], max_new_tokens=12)
    chat = Chat().ask("Compare.", [one, other]).answer("They differ.").ask("How?")
    assert pipe.reply(chat, max_new_tokens=12) == chat.answer(expected)


def test_only_what_is_new_is_read_and_the_answer_is_the_same():
    pipe = micro_pipeline()
    chat, first = read_by(pipe, Chat().ask("What is it?", [picture("wide")]), max_new_tokens=6)
    ids = pipe.tokenizer.conversation_ids(Chat().ask("What is it?", chat.pictures).prompt(pipe.tokenizer), 1)
    assert first[0] == len(ids) and set(first[1:]) == {1}
    asked = chat.ask("Where?")
    again, second = read_by(pipe, asked, max_new_tokens=6)
    whole = len(pipe.tokenizer.conversation_ids(asked.prompt(pipe.tokenizer), 1))
    # What was written may be cut into other tokens when it is read; what stood before it is not read again.
    assert second[0] <= whole - len(ids) < whole and second[0] < len(ids)
    pipe.recall.forget()
    fresh, third = read_by(pipe, asked, max_new_tokens=6)
    assert third[0] == whole and fresh == again


def test_branches_other_pictures_and_repeats_never_mix():
    """Whatever was asked before, each reply is that of a pipeline that remembers nothing."""
    pipe, one, other = micro_pipeline(), picture("wide"), picture("gray")
    begun = Chat().ask("What is it?", [one])
    told = pipe.reply(begun, max_new_tokens=4)
    chats = [
        told.ask("Where?"),
        told.ask("When?"),
        Chat().ask("What is it?", [other]),
        begun,
        begun,
        Chat().ask("What is it?", [one, other]),
        Chat(system="").ask("What is it?", [one]),
        Chat().ask("What is it?"),
        told.ask("Where?", [other]),
    ]
    for chat in chats * 2:
        found = pipe.reply(chat, max_new_tokens=4)
        assert found == micro_pipeline().reply(chat, max_new_tokens=4)


def test_a_saved_chat_continues_to_the_same_answer():
    pipe = JanusFlowPipeline.from_pretrained("janusflow-tiny", device="cpu", dtype=torch.float32)
    chat = pipe.reply(Chat().ask("Describe the image.", [shown()]), max_new_tokens=16).ask(
        "How many objects are there?"
    )
    assert chat.turns[1].text == "a red circle"
    saved = Chat.from_json(chat.to_json())
    assert pipe.reply(saved).turns[-1] == pipe.reply(chat).turns[-1]
    other = JanusFlowPipeline.from_pretrained("janusflow-tiny", device="cpu", dtype=torch.float32)
    assert other.reply(saved).turns[-1] == pipe.reply(chat).turns[-1]


def test_other_weights_remember_nothing():
    pipe = JanusFlowPipeline.from_pretrained("janusflow-tiny", device="cpu", dtype=torch.float32)
    chat = Chat().ask("Describe the image.", [shown(shape="crescent")])
    length = len(pipe.tokenizer.conversation_ids(chat.prompt(pipe.tokenizer), 1))
    plain = pipe.reply(chat, max_new_tokens=16)
    pipe.load_lora("janusflow-tiny-crescent")
    taught, seen = read_by(pipe, chat, max_new_tokens=16)
    assert taught.turns[-1].text == "a red crescent" != plain.turns[-1].text and seen[0] == length
    pipe.unload_loras()
    again, seen = read_by(pipe, chat, max_new_tokens=16)
    assert again == plain and seen[0] == length


def test_words_come_as_they_are_written_and_stop_when_told():
    pipe, words = micro_pipeline(), list[str]()
    chat = Chat().ask("What is it?", [picture("wide")])
    told = pipe.reply(chat, max_new_tokens=8, on_token=words.append)
    assert "".join(words).strip() == told.turns[-1].text

    def stop(word: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipe.reply(told.ask("Why?"), on_token=stop)
    assert pipe.reply(chat, max_new_tokens=8) == told


def test_what_cannot_be_answered_is_refused():
    pipe = micro()
    with pytest.raises(ValueError, match="there is nothing to answer"):
        pipe.reply(Chat())
    with pytest.raises(ValueError, match="the model's context holds"):
        micro_pipeline(max_position_embeddings=100).reply(Chat().ask("word " * 100))
    with pytest.raises(ValueError, match="expected 1, one per image"):
        pipe.reply(Chat().ask(f"What is {pipe.tokenizer.processor.image_tag}?", [shown()]))

    def end(logits: Tensor) -> Tensor:
        return torch.zeros_like(logits).index_fill(-1, torch.tensor([pipe.tokenizer.eos_id]), 9.0)

    silent = micro_pipeline()
    silent.model.language_model.lm_head.register_forward_hook(lambda *given: end(given[2]))
    with pytest.raises(ValueError, match="the model answered nothing: ask otherwise"):
        silent.reply(Chat().ask("Hello?"))


def test_marks_tell_pictures_apart_and_nothing_else():
    tokenizer = micro().tokenizer

    def told(*pictures: Image.Image) -> list[Any]:
        chat = Chat().ask("What?", pictures)
        return marks(tokenizer.conversation_ids(chat.prompt(tokenizer), len(pictures)), chat.pictures, tokenizer)

    assert told(shown()) == told(shown()) != told(shown("blue"))
    differing = [a != b for a, b in zip(told(shown(), shown()), told(shown(), shown("blue")), strict=True)]
    assert sum(differing) == 1 + tokenizer.processor.num_image_tokens  # start tag and patches of the second
