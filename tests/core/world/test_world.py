"""The embedded model's world: what is drawn is what was asked, and the judge reads it back."""

import itertools
import random
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from janusflow_core.world.judge import detect, judge
from janusflow_core.world.scenes import (
    BACKGROUNDS,
    COLORS,
    HELD_OUT_NOUNS,
    RELATIONS,
    SHAPES,
    Object,
    Scene,
    is_held_out,
    relation,
    render,
)
from janusflow_core.world.talk import (
    NUMBERS,
    PLURALS,
    TASKS,
    Request,
    caption,
    judged,
    parse_prompt,
    placed,
    questions,
    retell,
    sample_prompts,
    sample_training_example,
    scene_for_prompt,
)

SEEDS = st.integers(0, 2**32)


def thing(color: str, shape: str, x: float, y: float, radius: float = 12) -> Object:
    return Object(shape, color, x, y, radius, COLORS[color])


def scene(*things: Object) -> Scene:
    return Scene(BACKGROUNDS[0], things)


def kinds(things: list[Object] | tuple[Object, ...]) -> list[tuple[str, str]]:
    return sorted((item.color, item.shape) for item in things)


def degrade(image: np.ndarray, seed: int) -> Image.Image:
    """Blur a little and add noise of sigma 4, as a small decoder does."""
    soft = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(0.7)), np.float64)
    noisy = soft + np.random.default_rng(seed).normal(0, 4, soft.shape)
    return Image.fromarray(np.clip(noisy.round(), 0, 255).astype(np.uint8))


def asked(things: Scene, kind: str) -> set[tuple[str, str]]:
    """All questions of a kind that 300 draws bring, with their answers."""
    draws = (questions(things, random.Random(seed)) for seed in range(300))
    return {(question, answer) for draw in draws for name, question, answer in draw if name == kind}


LEFT = scene(thing("red", "circle", 25, 40), thing("blue", "square", 65, 45))
DIAGONAL = scene(thing("green", "heart", 65, 66), thing("black", "star", 30, 30))
TWINS = scene(*(thing("green", "star", x, y) for x, y in ((20, 20), (70, 20), (45, 70))))


# ---- pictures and the judge ----


@pytest.mark.parametrize("spoil", [lambda image, seed: image, degrade], ids=["clean", "noisy"])
def test_detect_reads_renders(spoil):
    rng = random.Random(1)
    scenes = [sample_training_example(rng)[2] for _ in range(400)]
    found = [detect(spoil(render(one), seed)) for seed, one in enumerate(scenes)]
    right = sum(kinds(one.objects) == kinds(seen) for one, seen in zip(scenes, found, strict=True))
    assert right >= 392


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("radius", [10, 19])
def test_every_kind_is_read_at_its_place(background, radius):
    for color, shape in itertools.product(COLORS, SHAPES):
        drawn = Object(shape, color, 40.3, 52.6, radius, COLORS[color])
        (seen,) = detect(render(Scene(background, (drawn,))))
        assert (seen.shape, seen.color, seen.rgb) == (shape, color, COLORS[color])
        assert (seen.x, seen.y, seen.radius) == pytest.approx((40.3, 52.6, radius), abs=0.75)


def test_render_is_antialiased_and_keeps_the_scene_at_other_sizes():
    small, large = render(LEFT), render(LEFT, 192)
    assert small.dtype == np.uint8 and small.shape == (96, 96, 3) and large.shape == (192, 192, 3)
    assert tuple(small[0, 0]) == BACKGROUNDS[0] and tuple(small[40, 25]) == COLORS["red"]
    assert len(np.unique(small.reshape(-1, 3), axis=0)) > 10
    assert kinds(detect(large)) == kinds(LEFT.objects)


def test_a_circle_has_its_area():
    drawn = render(Scene((0, 0, 0), (Object("circle", "red", 48.5, 47.25, 15, (255, 0, 0)),)))
    assert drawn[..., 0].sum() / 255 == pytest.approx(np.pi * 15**2, rel=0.03)


def test_specks_are_ignored_and_foreign_things_are_reported():
    image = render(LEFT).copy()
    image[85:89, 10:14] = COLORS["green"]
    assert kinds(detect(image)) == kinds(LEFT.objects)
    image[75:95, 70:90] = (128, 128, 128)
    assert ("unknown", "square") in kinds(detect(image))
    image[75:95, 10:90] = COLORS["green"]
    assert ("green", "unknown") in kinds(detect(image))


def test_touching_things_of_two_colors_are_two():
    image = render(scene(thing("red", "square", 40, 48, 14), thing("blue", "square", 60, 48, 14)))
    assert kinds(detect(image)) == [("blue", "square"), ("red", "square")]


@pytest.mark.parametrize("fill", [(250, 250, 250), COLORS["red"]])
def test_detect_of_an_empty_picture_is_empty(fill):
    assert detect(np.full((96, 96, 3), fill, np.uint8)) == []


def test_a_small_soft_square_stays_a_square():
    # With hard templates the noise along its edges made this one a circle.
    prompt, _, drawn = sample_training_example(random.Random(6759))
    assert judge(degrade(render(drawn), 6759), prompt)


@pytest.mark.parametrize(
    ("prompt", "verdict"),
    [
        ("a red circle left of a blue square", True),
        ("a photo of a blue square right of a red circle", True),
        ("a circle left of a square", True),
        ("a red circle and a blue square", True),
        ("a square and a circle", True),
        ("a blue circle left of a red square", False),
        ("a red circle right of a blue square", False),
        ("a red circle above a blue square", False),
        ("a red circle left of a blue heart", False),
        ("a blue square left of a red circle", False),
        ("a red circle", False),
        ("two circles", False),
    ],
)
def test_judge_of_two_things(prompt, verdict):
    assert judge(render(LEFT), prompt) is verdict


@pytest.mark.parametrize(
    ("prompt", "verdict"),
    [
        ("three green stars", True),
        ("three stars", True),
        ("three red stars", False),
        ("two green stars", False),
        ("four green stars", False),
        ("three green hearts", False),
        ("a green star", False),
    ],
)
def test_judge_of_counts(prompt, verdict):
    assert judge(render(TWINS), prompt) is verdict


def test_judge_wants_a_clear_relation():
    image = render(DIAGONAL)
    assert judge(image, "a black star and a green heart")
    assert not any(judge(image, f"a star {link} a heart") for link in ("left of", "right of", "above", "below"))


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (20, 50, "left of"),
        (80, 50, "right of"),
        (50, 20, "above"),
        (50, 80, "below"),
        (30, 50, "left of"),
        (30.5, 50, None),
        (20, 70, "left of"),
        (20, 70.5, None),
        (70.5, 20, None),
        (70, 20, "above"),
    ],
)
def test_relation_at_its_borders(x, y, expected):
    assert relation(thing("red", "star", x, y), thing("red", "star", 50, 50)) == expected


# ---- training examples ----


@settings(max_examples=200, deadline=None)
@given(SEEDS)
def test_a_training_example_is_true_and_complete(seed):
    prompt, task, drawn = sample_training_example(random.Random(seed))
    image, request = render(drawn), parse_prompt(prompt)
    assert request.task == task and len(drawn.objects) == len(request.kinds) * request.count
    assert judge(image, prompt)
    assert judge(image, caption(drawn))
    assert judge(degrade(image, seed), prompt)


@settings(max_examples=200, deadline=None)
@given(SEEDS)
def test_objects_keep_apart_and_inside(seed):
    things = sample_training_example(random.Random(seed))[2].objects
    for one in things:
        assert 10 <= one.radius <= 19
        assert one.radius <= min(one.x, one.y) and max(one.x, one.y) <= 96 - one.radius
        assert max(abs(a - b) for a, b in zip(one.rgb, COLORS[one.color], strict=True)) <= 8
    for one, other in itertools.combinations(things, 2):
        assert np.hypot(one.x - other.x, one.y - other.y) >= one.radius + other.radius + 2


@settings(max_examples=100, deadline=None)
@given(SEEDS)
def test_a_swapped_color_or_shape_is_false(seed):
    prompt, _, drawn = sample_training_example(random.Random(seed))
    image = render(drawn)
    nouns = [word for word in prompt.split() if word in COLORS or word in SHAPES]
    for word in nouns:
        others = [*COLORS] if word in COLORS else SHAPES
        wrong = next(other for other in others if other not in nouns)
        assert not judge(image, prompt.replace(word, wrong))


def test_nothing_held_out_is_sampled_and_every_task_is():
    rng = random.Random(0)
    drawn = [sample_training_example(rng) for _ in range(2000)]
    assert not any(is_held_out(example[2]) for example in drawn)
    assert {task for _, task, _ in drawn} == set(TASKS)
    nouns = {f"{item.color} {item.shape}" for *_, one in drawn for item in one.objects}
    assert len(nouns) == 44 and not nouns & {"purple star", "cyan heart", "orange cross", "black triangle"}
    assert sum(len(one.objects) == 2 for *_, one in drawn) > 1000


def test_the_same_seed_draws_the_same_example():
    assert sample_training_example(random.Random(5)) == sample_training_example(random.Random(5))


def test_a_tenth_of_the_pairs_is_held_out_whatever_the_order():
    free = [k for k in itertools.product(COLORS, SHAPES) if " ".join(k) not in HELD_OUT_NOUNS]
    pairs = [(thing(*a, 20, 20), thing(*b, 70, 70)) for a, b in itertools.combinations(free, 2)]
    held = [is_held_out(scene(a, b)) for a, b in pairs]
    assert 0.08 < sum(held) / len(pairs) < 0.12
    assert held == [is_held_out(scene(b, a)) for a, b in pairs]
    assert not any(is_held_out(scene(thing(*k, 20, 20), thing(*k, 70, 70))) for k in free)


def test_the_held_out_pairs_never_change():
    # A trained checkpoint's scores on unseen pairs mean nothing once the hash moves.
    assert is_held_out(scene(thing("red", "circle", 20, 20), thing("cyan", "cross", 70, 70)))
    assert not is_held_out(scene(thing("red", "circle", 20, 20), thing("blue", "square", 70, 70)))


# ---- prompts ----


@pytest.mark.parametrize(
    ("prompt", "expected", "task"),
    [
        ("a heart", Request(((None, "heart"),)), "single"),
        ("an image of an orange star", Request((("orange", "star"),)), "color"),
        (
            "a red circle and a blue square",
            Request((("red", "circle"), ("blue", "square"))),
            "color_attribution",
        ),
        ("a picture of a circle and a square", Request(((None, "circle"), (None, "square"))), "two"),
        ("three green stars", Request((("green", "star"),), 3), "counting"),
        ("a photo of two crosses", Request(((None, "cross"),), 2), "counting"),
        (
            "a red circle left of a blue square",
            Request((("red", "circle"), ("blue", "square")), 1, "left of"),
            "position",
        ),
        ("a heart below a star", Request(((None, "heart"), (None, "star")), 1, "below"), "position"),
    ],
)
def test_prompts_are_read_and_written(prompt, expected, task):
    request = parse_prompt(prompt)
    assert request == expected and request.task == task
    assert prompt.endswith(request.text)
    drawn = scene_for_prompt(prompt, random.Random(3))
    assert judge(render(drawn), prompt)


@pytest.mark.parametrize(
    "prompt",
    ["", "a cat", "a pink star", "one star", "five stars", "two star", "two circlees", "a star near a heart",
     "stars", "a photo of", "a red circle and", "two stars and a heart", "a painting of a star"],
)  # fmt: skip
def test_foreign_prompts_are_refused(prompt):
    with pytest.raises(ValueError, match="expected the form"):
        parse_prompt(prompt)


@pytest.mark.parametrize("task", TASKS)
def test_evaluation_prompts_are_of_their_task_and_repeatable(task):
    prompts = sample_prompts(task, 40, seed=1)
    assert len(prompts) == 40 and prompts == sample_prompts(task, 40, seed=1) != sample_prompts(task, 40, seed=2)
    assert {parse_prompt(prompt).task for prompt in prompts} == {task}
    assert not any(noun in prompt for prompt in prompts for noun in HELD_OUT_NOUNS)


@pytest.mark.parametrize("task", ["color", "color_attribution", "counting", "position"])
def test_held_out_prompts_give_held_out_scenes(task):
    for prompt in sample_prompts(task, 20, seed=1, held_out=True):
        assert parse_prompt(prompt).task == task
        drawn = scene_for_prompt(prompt, random.Random(0))
        assert is_held_out(drawn) and judge(render(drawn), prompt)


@pytest.mark.parametrize(("task", "held_out"), [("single", True), ("two", True), ("colour", False)])
def test_tasks_without_such_prompts_are_refused(task, held_out):
    with pytest.raises(ValueError, match="expected one of"):
        sample_prompts(task, 3, seed=0, held_out=held_out)


# ---- captions and questions ----


@pytest.mark.parametrize(
    ("things", "expected"),
    [
        (scene(thing("orange", "star", 40, 40)), "an orange star"),
        (LEFT, "a red circle left of a blue square"),
        (scene(*reversed(LEFT.objects)), "a red circle left of a blue square"),
        (
            scene(thing("red", "star", 50, 70), thing("cyan", "cross", 45, 20)),
            "a cyan cross above a red star",
        ),
        (DIAGONAL, "a black star and a green heart"),
        (TWINS, "three green stars"),
        (scene(*TWINS.objects[:2]), "two green stars"),
        (scene(TWINS.objects[0], thing("red", "star", 70, 70)), "two stars"),
    ],
)
def test_captions(things, expected):
    assert caption(things) == expected
    assert judge(render(things), expected)


@settings(deadline=None)
@given(st.integers(0, 10**6))
def test_a_judge_is_told_what_the_scene_shows(seed):
    """Of a prompt that the scene fits every answer is the wanted one, of another what the things themselves say."""
    rng = random.Random(seed)
    scene = sample_training_example(rng)[2]
    for question, answer in (pair for _ in range(5) for pair in judged(scene, rng)):
        if found := re.fullmatch(r"Is there an? (?:(\w+) )?(\w+)\?", question):
            expected = any(item.shape == found[2] and found[1] in (None, item.color) for item in scene.objects)
        elif found := re.fullmatch(r"How many (?:(\w+) )?(\w+) are there\?", question):
            shape = next(shape for shape in SHAPES if PLURALS[shape] == found[2])
            total = sum(item.shape == shape and found[1] in (None, item.color) for item in scene.objects)
            assert answer == NUMBERS[total]
            continue
        else:
            thing, place = r"the (?:(\w+) )?(\w+)", "left of|right of|above|below"
            found = re.fullmatch(rf"Is {thing} ({place}) {thing}\?", question)
            pairs = [(a, b) for a in scene.objects for b in scene.objects if (a.shape, b.shape) == (found[2], found[5])]
            pairs = [(a, b) for a, b in pairs if found[1] in (None, a.color) and found[4] in (None, b.color)]
            expected = any(relation(a, b) == found[3] for a, b in pairs)
        assert answer == ("yes" if expected else "no"), (question, scene)


def test_a_judge_asks_about_what_is_there_and_about_what_is_not():
    rng = random.Random(0)
    told = [pair for _ in range(400) for pair in judged(sample_training_example(rng)[2], rng)]
    yes, no = (sum(answer == which for _, answer in told) for which in ("yes", "no"))
    assert 0.3 < yes / (yes + no) < 0.8 and len({answer for _, answer in told}) == 7  # five numbers


def test_places_are_asked_rightly_and_wrongly_of_two_things_that_have_them():
    draws = [placed(LEFT, random.Random(seed)) for seed in range(300)]
    assert {tuple(answer for _, answer in draw) for draw in draws} == {("yes", "no")}
    right = {"Is the circle left of the square?", "Is the square right of the circle?"}
    assert {question for draw in draws for question, answer in draw if answer == "yes"} == right
    every = {
        f"Is the {a} {place} the {b}?" for a, b in (("circle", "square"), ("square", "circle")) for place in RELATIONS
    }
    assert {question for draw in draws for question, answer in draw if answer == "no"} == every - right
    assert not any(placed(things, random.Random(0)) for things in (DIAGONAL, TWINS, scene(LEFT.objects[0])))


def test_a_scene_is_retold_in_every_way_that_it_fits():
    rng = random.Random(0)
    assert {retell(LEFT, rng) for _ in range(200)} == {
        f"{one} {link} {other}"
        for a, b in (("a circle", "a square"), ("a red circle", "a blue square"))
        for one, link, other in ((a, "left of", b), (b, "right of", a), (a, "and", b), (b, "and", a))
    }
    assert {retell(TWINS, rng) for _ in range(50)} == {"three stars", "three green stars"}


@given(SEEDS)
def test_the_judge_agrees_with_every_retelling(seed):
    rng = random.Random(seed)
    drawn = sample_training_example(rng)[2]
    assert judge(render(drawn), retell(drawn, rng))


@pytest.mark.parametrize("things", [(), (*LEFT.objects, thing("cyan", "star", 48, 80))], ids=["none", "three kinds"])
def test_scenes_that_no_prompt_describes_have_no_caption(things):
    with pytest.raises(ValueError, match=f"got {len(things)} objects"):
        caption(scene(*things))


def test_questions_about_two_things():
    assert asked(LEFT, "caption") == {("Describe the image.", "a red circle left of a blue square")}
    assert asked(LEFT, "color") == {
        ("What color is the circle?", "red"),
        ("What color is the square?", "blue"),
    }
    assert asked(LEFT, "shape") == {
        ("What shape is the red object?", "circle"),
        ("What shape is the blue object?", "square"),
    }
    assert asked(LEFT, "where") == {
        ("Where is the circle?", "left of the square"),
        ("Where is the square?", "right of the circle"),
    }
    assert asked(LEFT, "what") == {
        ("What is left of the square?", "a red circle"),
        ("What is right of the circle?", "a blue square"),
    }
    assert asked(LEFT, "relation") == {
        ("Is the circle left of the square?", "yes"),
        ("Is the circle right of the square?", "no"),
        ("Is the circle above the square?", "no"),
        ("Is the circle below the square?", "no"),
        ("Is the square right of the circle?", "yes"),
        ("Is the square left of the circle?", "no"),
        ("Is the square above the circle?", "no"),
        ("Is the square below the circle?", "no"),
    }
    assert asked(LEFT, "count") == {
        ("How many objects are there?", "two"),
        ("How many circles are there?", "one"),
        ("How many squares are there?", "one"),
        ("How many triangles are there?", "zero"),
        ("How many stars are there?", "zero"),
        ("How many crosses are there?", "zero"),
        ("How many hearts are there?", "zero"),
    }


def test_questions_whether_something_exists():
    answers = asked(LEFT, "exists")
    yes = {question for question, answer in answers if answer == "yes"}
    assert yes == {"Is there a red circle?", "Is there a blue square?"}
    assert {("Is there a blue circle?", "no"), ("Is there an orange circle?", "no")} <= answers
    assert not any(noun in question for question, _ in answers for noun in HELD_OUT_NOUNS)
    unseen = scene(thing("purple", "star", 40, 40))
    assert ("Is there a purple star?", "yes") in asked(unseen, "exists")


def test_ambiguous_questions_are_not_asked():
    assert {kind for kind, _, _ in questions(TWINS, random.Random(0))} == {"caption", "count", "exists"}
    assert ("How many stars are there?", "three") in asked(TWINS, "count")
    assert not asked(DIAGONAL, "relation") and not asked(DIAGONAL, "where") and not asked(DIAGONAL, "what")
    same_color = scene(LEFT.objects[0], replace(LEFT.objects[1], color="red", rgb=COLORS["red"]))
    assert not asked(same_color, "shape") and asked(same_color, "color")
    mixed = scene(TWINS.objects[0], thing("red", "star", 70, 70))
    assert not asked(mixed, "color")
    assert asked(mixed, "shape") == {
        ("What shape is the green object?", "star"),
        ("What shape is the red object?", "star"),
    }


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_what_is_said_to_exist_is_there_and_nothing_else(seed):
    drawn = sample_training_example(random.Random(seed))[2]
    for question, answer in asked(drawn, "exists"):
        (kind,) = parse_prompt(question.removeprefix("Is there ").removesuffix("?")).kinds
        assert answer == ("yes" if any(item.is_a(kind) for item in drawn.objects) else "no")


@settings(max_examples=200, deadline=None)
@given(SEEDS)
def test_questions_are_one_of_a_kind_with_answers_in_known_words(seed):
    rng = random.Random(seed)
    drawn = sample_training_example(rng)[2]
    names = [kind for kind, _, _ in questions(drawn, rng)]
    order = ["caption", "color", "shape", "count", "exists", "relation", "where", "what"]
    assert names == [name for name in order if name in names]
    assert {"caption", "count", "exists"} <= set(names)
