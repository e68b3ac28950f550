"""Answers that a graph can use: choices, booleans, numbers and JSON, as the library gives them, on native wires."""

import json
from typing import get_args

import graphs
import jsonschema
import pytest
import torch
from graphs import LEFT_RIGHT, STARS, TINY, Graph, failure, tiny

from janusflow_core.image import pixels
from janusflow_core.scoring import Judging

PICTURES = [LEFT_RIGHT, STARS]


def batch_of(graph: Graph, names: list[str]):
    first, second = (graph.add("LoadImage", image=name) for name in names)
    return graph.add("ImageBatch", image1=first, image2=second)


def asked(graph: Graph, kind: str, image, question: str, pictures: str = "one by one", **inputs):
    loaded = graph.load(TINY, weight_dtype="fp32")
    return graph.add(kind, clip=loaded[1], image=image, question=question, pictures=pictures, **inputs)


def told(server, graph: Graph, *outputs) -> list[list[str]]:
    return graph.texts(server, *outputs)


def test_choices_and_their_chances_are_the_librarys(server, uploaded):
    graph, question, options = Graph(), "What shape is the green object?", ["circle", "star", "square"]
    node = asked(graph, "JanusFlowChoose", batch_of(graph, uploaded), question, options="\n".join(options))
    answers, chances, numbers, every = told(server, graph, *(node[slot] for slot in range(4)))
    expected = tiny().choose(PICTURES, question, options)
    assert answers == [choice.answer for choice in expected] and answers[1] == "star"
    assert [options[int(number)] for number in numbers] == answers
    for chance, one, choice in zip(chances, every, expected, strict=True):
        assert json.loads(one) == pytest.approx(choice.probabilities, abs=1e-4) and "e-" not in one
        assert float(chance) == pytest.approx(choice.probabilities[choice.answer], abs=1e-4)


def test_yes_and_no_are_booleans_that_switch_a_graph(server, uploaded):
    """Core's own switch takes one of two texts by the answer about each picture."""
    graph, question = Graph(), "Is there a green star?"
    node = asked(graph, "JanusFlowYesNo", batch_of(graph, uploaded), question, sure=0.5)
    switched = graph.add("ComfySwitchNode", switch=node[0], on_false="none", on_true="stars")
    chances, texts = told(server, graph, node[1], switched)
    expected = [choice.probabilities["yes"] for choice in tiny().yes_no(PICTURES, question)]
    assert [float(chance) for chance in chances] == pytest.approx(expected, abs=1e-4)
    assert texts == ["none", "stars"]


def test_sure_says_how_likely_yes_must_be(server, uploaded):
    graph, question = Graph(), "Is there a green star?"
    image = graph.add("LoadImage", image=uploaded[0])
    nodes = [asked(graph, "JanusFlowYesNo", image, question, sure=sure) for sure in (0.0, 1.0)]
    assert told(server, graph, *(node[0] for node in nodes)) == [["True"], ["False"]]


def test_numbers_are_numbers(server, uploaded):
    graph, question = Graph(), "How many stars are there?"
    image = batch_of(graph, uploaded)
    plain = asked(graph, "JanusFlowNumber", image, question, minimum=0.0, maximum=100.0, decimals=0)
    narrow = asked(graph, "JanusFlowNumber", image, question, minimum=-7.5, maximum=-5.0, decimals=2)
    whole, number, low, exact = told(server, graph, plain[0], plain[1], narrow[0], narrow[1])
    assert whole == [str(value) for value in tiny().number(PICTURES, question)] and whole[1] == "3"
    assert [float(value) for value in number] == [float(value) for value in whole]
    assert [float(value) for value in exact] == tiny().number(PICTURES, question, -7.5, -5.0, 2)
    assert all(-7.5 <= float(value) <= -5.0 and int(one) <= float(value) for value, one in zip(exact, low, strict=True))


def test_json_satisfies_its_schema(server, uploaded):
    schema = {"type": "object", "properties": {"color": {"enum": ["red", "green"]}}, "required": ["color"]}
    graph, question = Graph(), "What color is the star?"
    node = asked(
        graph, "JanusFlowJSON", batch_of(graph, uploaded), question, schema=json.dumps(schema), max_new_tokens=64
    )
    (texts,) = told(server, graph, node)
    values = [json.loads(text) for text in texts]
    assert values == tiny().structured(PICTURES, question, schema)
    for value in values:
        jsonschema.validate(value, schema)


def test_pictures_can_be_asked_about_together(server, uploaded):
    graph, question = Graph(), "Is there a green star?"
    node = asked(graph, "JanusFlowYesNo", batch_of(graph, uploaded), question, "together", sure=0.5)
    (chances,) = told(server, graph, node[1])
    expected = tiny().yes_no(PICTURES, question, together=True).probabilities["yes"]
    assert [float(chance) for chance in chances] == pytest.approx([expected], abs=1e-4)


# --- the model judges pictures ----------------------------------------------------------------------------------

PROMPT = "a red circle left of a blue square"


def score(graph: Graph, image, prompt: str, **inputs):
    loaded = graph.load(TINY, weight_dtype="fp32")
    return graph.add(
        "JanusFlowScore", clip=loaded[1], image=image, prompt=prompt, **{"keep": 1, "by": "parts", **inputs}
    )


@pytest.mark.parametrize("by", get_args(Judging))
def test_scores_are_the_librarys_and_the_best_go_on(server, uploaded, by):
    graph = Graph()
    node = score(graph, batch_of(graph, uploaded), "three green stars", by=by, keep=256)
    alone = score(graph, batch_of(graph, uploaded), "three green stars", by=by)
    scores, order = told(server, graph, node[1], node[2])
    expected = tiny().score(PICTURES, "three green stars", by=by)
    assert [float(one) for one in scores] == pytest.approx(expected, rel=1e-2, abs=1e-6)
    assert expected[1] > expected[0] and order == ["1", "0"]
    both, best = graph.pictures(server, node[0], alone[0])
    assert torch.equal(both, torch.stack([pixels(STARS), pixels(LEFT_RIGHT)])) and torch.equal(best[0], both[0])


def retry(graph: Graph, **inputs):
    loaded = graph.load(TINY, vae="from checkpoint", weight_dtype="fp32")
    encoded = graph.encode(loaded, PROMPT)
    parts = {"model": loaded, "clip": loaded[1], "vae": loaded[2], "positive": encoded[0], "negative": encoded[1]}
    settings = {"seed": 40, "tries": 3, "until": 1.0, "batch_size": 2, "steps": 8, "cfg": 2.5, "width": 0, "height": 0}
    return graph.add("JanusFlowRetry", prompt=PROMPT, by="parts", **parts, **{**settings, **inputs})


def test_all_tries_give_the_best_of_all_and_its_seed(server):
    graph = Graph()
    node = retry(graph)
    (latent,) = graph.latents(server, node[1])
    (found,), (seed,), (tries,) = told(server, graph, node[2], node[3], node[4])
    pictures = tiny().generate(PROMPT, num_images=6, steps=8, guidance=2.5, seed=40)
    scores = tiny().score(pictures, PROMPT)
    best = max(range(6), key=scores.__getitem__)
    assert (int(seed), int(tries)) == (40 + best, 3) and float(found) == pytest.approx(scores[best], rel=2e-2)
    expected = tiny().generate(PROMPT, steps=8, guidance=2.5, seed=40 + best, output="latent")
    assert graphs.relative(latent, expected) <= 1e-3


def test_it_stops_as_soon_as_a_picture_is_good_enough(server):
    scores = tiny().score(tiny().generate(PROMPT, num_images=16, steps=8, guidance=2.5, seed=40), PROMPT)
    # From where the second try's best exceeds the first one's by the most.
    tries_from = {first: (max(scores[first : first + 2]), max(scores[first + 2 : first + 4])) for first in range(13)}
    first, (early, wanted) = max(tries_from.items(), key=lambda item: item[1][1] - item[1][0])
    assert wanted > early
    graph = Graph()
    node = retry(graph, seed=40 + first, until=0.9 * wanted + 0.1 * early)
    (seed,), (tries,) = told(server, graph, node[3], node[4])
    assert (int(seed), int(tries)) == (40 + scores.index(wanted, first), 2)


@pytest.mark.parametrize(
    ("kind", "inputs", "words"),
    [
        ("JanusFlowChoose", {"options": " \n"}, ["options must be different texts"]),
        ("JanusFlowChoose", {"options": "a\nb\na"}, ["options must be different texts"]),
        ("JanusFlowChoose", {"options": "yes | Yes\nno | yes"}, ["options must be different texts"]),
        ("JanusFlowNumber", {"minimum": 3.0, "maximum": 2.0, "decimals": 0}, ["must lie between two numbers"]),
        ("JanusFlowNumber", {"minimum": 0.2, "maximum": 0.3, "decimals": 0}, ["there is no number of 0 decimals"]),
        ("JanusFlowJSON", {"schema": "{", "max_new_tokens": 8}, ["the schema is not valid JSON"]),
        ("JanusFlowJSON", {"schema": '{"type": "foo"}', "max_new_tokens": 8}, ["this schema cannot be followed"]),
        ("JanusFlowJSON", {"schema": '{"const": "long text"}', "max_new_tokens": 2}, ["the answer was cut off"]),
        ("JanusFlowYesNo", {"sure": 0.5, "question": " "}, ["The question is empty"]),
    ],
)
def test_what_cannot_be_answered_is_refused_in_a_sentence(server, uploaded, kind, inputs, words):
    graph = Graph()
    image = graph.add("LoadImage", image=uploaded[0])
    asked(graph, kind, image, **{"question": "What?", **inputs})
    failure(server, graph, kind, *words)


def test_an_empty_prompt_has_no_score(server, uploaded):
    graph = Graph()
    score(graph, graph.add("LoadImage", image=uploaded[0]), "a photo of ")
    failure(server, graph, "JanusFlowScore", "Score Image got an empty prompt")


@pytest.fixture(scope="module", autouse=True)
def stocked(server):
    graphs.stock(server.base / "models")
