"""Answers that a graph can use: choices, booleans, numbers and JSON, as the library gives them, on native wires."""

import json

import graphs
import jsonschema
import pytest
from graphs import LEFT_RIGHT, STARS, TINY, Graph, failure, tiny

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
        assert json.loads(one) == pytest.approx(choice.probabilities, abs=1e-4)
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


@pytest.fixture(scope="module", autouse=True)
def stocked(server):
    graphs.stock(server.base / "models")
