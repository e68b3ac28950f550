"""Chats on a graph: answers as the library gives them, branches, files there and back, what is refused."""

import json
import os
import time
from pathlib import Path

import graphs
import pytest
import torch
from graphs import LEFT_RIGHT, STARS, TINY, Graph, failure, tiny
from PIL import Image

from janusflow_core import Chat, JanusFlowPipeline
from janusflow_core.host.server import Server
from janusflow_core.tokenizer import SYSTEM_PROMPT
from janusflow_core.world.scenes import COLORS, Object, Scene, render

GREEDY = {"mode": "greedy", "max_new_tokens": 24}
LOOK, COUNT, SHAPE = "Describe the image.", "How many objects are there?", "What shape is the green object?"


def ask(graph: Graph, question: str, **inputs):
    return graph.add("JanusFlowAsk", clip=graph.load(TINY)[1], question=question, **{**GREEDY, **inputs})


def turn(graph: Graph, text: str, role: str = "user", **inputs):
    return graph.add("JanusFlowChatTurn", text=text, role=role, **{"system": SYSTEM_PROMPT, **inputs})


def saved(graph: Graph, chat, prefix: str = "chats/test"):
    return graph.add("JanusFlowSaveChat", chat=chat, filename_prefix=prefix)


def replied(chat: Chat) -> Chat:
    return tiny().reply(chat, max_new_tokens=24)


def test_two_turns_and_two_branches_are_the_librarys(server, uploaded):
    graph = Graph()
    first = ask(graph, LOOK, image=graph.add("LoadImage", image=uploaded[1]))
    branches = [ask(graph, question, chat=first[1]) for question in (COUNT, SHAPE)]
    one, *others = graph.texts(server, first, *branches)
    begun = replied(Chat().ask(LOOK, [STARS]))
    assert one == [begun.turns[-1].text] == ["three green stars"]
    assert others == [[replied(begun.ask(question)).turns[-1].text] for question in (COUNT, SHAPE)]


def test_turns_by_hand_are_the_librarys(server, uploaded):
    graph = Graph()
    images = [graph.add("LoadImage", image=name) for name in uploaded]
    chat = turn(graph, LOOK, image=images[0], system="")
    chat = turn(graph, "a circle", "assistant", chat=chat)
    chat = turn(graph, "", chat=chat, image=images[1])
    both = turn(graph, LOOK, chat=chat)
    (told, whole) = graph.texts(server, ask(graph, "", chat=both), saved(graph, ask(graph, LOOK, chat=chat)[1]))
    expected = Chat(system="").ask(LOOK, [LEFT_RIGHT]).answer("a circle").ask("", [STARS]).ask(LOOK)
    assert told == [replied(expected).turns[-1].text]
    assert Chat.from_json(whole[0]).text == replied(expected).text and "system" not in whole[0]


def test_a_batch_is_shown_together(server, uploaded):
    graph = Graph()
    first, second = (graph.add("LoadImage", image=name) for name in uploaded)
    node = ask(graph, LOOK, image=graph.add("ImageBatch", image1=first, image2=second))
    (whole,) = graph.texts(server, saved(graph, node[1]))
    chat = Chat.from_json(whole[0])
    assert len(chat.pictures) == 2 and chat.text == replied(Chat().ask(LOOK, [LEFT_RIGHT, STARS])).text


def test_a_saved_chat_goes_on_to_the_same_answer_also_in_a_later_server(server, uploaded):
    graph = Graph()
    first = ask(graph, LOOK, image=graph.add("LoadImage", image=uploaded[1]))
    kept = saved(graph, first[1], "chats/kept")
    told, whole = graph.texts(server, ask(graph, COUNT, chat=first[1]), kept)
    (file,) = (server.base / "output" / "chats").glob("kept_*.json")
    assert file.read_text("utf-8") == whole[0] and json.loads(whole[0])["messages"][-1]["role"] == "assistant"
    again = Graph()
    loaded = again.add("JanusFlowLoadChat", file=f"chats/{file.name} [output]")
    given = again.add("JanusFlowLoadChat", file="none", json=again.add("PrimitiveStringMultiline", value=whole[0]))
    assert again.texts(server, ask(again, COUNT, chat=loaded), ask(again, COUNT, chat=given)) == [told, told]


def test_what_one_clip_read_no_other_takes_for_its_own(server, tmp_path):
    """A LoRA upon the same model: what each says of the picture and of what follows is its own, in any order."""
    crescent = Image.fromarray(render(Scene((250, 250, 250), (Object("crescent", "red", 40, 40, 14, COLORS["red"]),))))
    graph = Graph()
    image = graph.add("LoadImage", image=graphs.upload(server, tmp_path, crescent)[0])
    plain = graph.load(TINY)
    chosen = {"lora_name": "janusflow-tiny-crescent.safetensors", "strength_model": 1.0, "strength_clip": 1.0}
    taught = graph.add("LoraLoader", model=plain, clip=plain[1], **chosen)
    asked = {"question": LOOK, "image": image, **GREEDY}
    nodes = []
    for loaded in (plain, taught, plain, taught):
        links = {"chat": nodes[-1][1]} if nodes else {}
        nodes.append(graph.add("JanusFlowAsk", clip=loaded[1], **asked, **links))
    alone = [graph.add("JanusFlowAsk", clip=loaded[1], **asked) for loaded in (taught, plain)]
    told = graph.texts(server, *nodes, *alone)
    pipes = [tiny(), JanusFlowPipeline.from_pretrained(TINY, device="cpu", dtype=torch.float32)]
    pipes[1].load_lora("janusflow-tiny-crescent")
    chat, expected = Chat(), []
    for pipe in pipes * 2:
        pipe.recall.forget()
        chat = pipe.reply(chat.ask(LOOK, [crescent]), max_new_tokens=24)
        expected.append([chat.turns[-1].text])
    assert told[: len(nodes)] == expected
    assert told[len(nodes) :] == [["a red crescent"], expected[0]] and expected[0] != ["a red crescent"]


def test_a_file_that_changed_is_read_again(server):
    file: Path = server.base / "input" / "talk.json"
    for text in ("One", "Two"):
        file.write_text(Chat().ask(text).to_json(), encoding="utf-8")
        os.utime(file, (time.time(), time.time() + len(text) + (text == "Two")))
        graph = Graph()
        (whole,) = graph.texts(server, saved(graph, graph.add("JanusFlowLoadChat", file="talk.json")))
        assert Chat.from_json(whole[0]).turns[0].text == text


def test_nothing_is_written_over_and_nothing_outside(server):
    for number in range(2):
        graph = Graph()
        graph.texts(server, saved(graph, turn(graph, f"Hello {number}"), "greeting"))
    files = sorted((server.base / "output").glob("greeting_*.json"))
    assert [Chat.from_json(file.read_text("utf-8")).turns[0].text for file in files] == ["Hello 0", "Hello 1"]
    assert not list((server.base / "output").rglob(".partial*"))
    graph = Graph()
    chat = turn(graph, "Hello")
    saved(graph, chat, "../../outside")
    assert server.run(graph.prompt).status == "error"
    assert not [*server.base.parent.glob("outside_*"), *server.base.rglob("outside_*")]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", ["this chat is no JSON"]),
        ('[{"role": "tool", "content": ""}]', ["message 1 of the chat is wrong", "tool"]),
        (
            '[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/a.png"}}]}]',
            ["nothing is fetched"],
        ),
    ],
)
def test_what_is_no_chat_is_refused_in_a_sentence(server, text, words):
    graph = Graph()
    loaded = graph.add("JanusFlowLoadChat", file="none", json=graph.add("PrimitiveStringMultiline", value=text))
    saved(graph, loaded)
    failure(server, graph, "JanusFlowLoadChat", *words)


def test_what_cannot_be_said_is_refused_in_a_sentence(server, uploaded):
    graph = Graph()
    saved(graph, graph.add("JanusFlowLoadChat", file="none"))
    failure(server, graph, "JanusFlowLoadChat", "Load Chat has nothing to load")
    graph = Graph()
    ask(graph, " ", chat=turn(graph, "Yes.", "assistant", chat=turn(graph, "Really?")))
    failure(server, graph, "JanusFlowAsk", "there is nothing to answer")
    graph = Graph()
    picture = graph.add("LoadImage", image=uploaded[0])
    saved(graph, turn(graph, "Look", "assistant", chat=turn(graph, "Show me"), image=picture))
    failure(server, graph, "JanusFlowChatTurn", "Chat Turn got a picture of the assistant")
    graph = Graph()
    saved(graph, turn(graph, " "))
    failure(server, graph, "JanusFlowChatTurn", "a turn is empty")
    graph = Graph()
    ask(graph, "word " * 1000)
    failure(server, graph, "JanusFlowAsk", "the model's context holds")


@pytest.fixture(scope="module", autouse=True)
def stocked(server: Server):
    graphs.stock(server.base / "models")
