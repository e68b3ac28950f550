"""What is said about scenes: prompts and what they ask for, captions, questions and their answers."""

import itertools
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from .. import scoring
from .scenes import (
    BACKGROUNDS,
    COLORS,
    RELATIONS,
    SHAPES,
    Kind,
    Object,
    Scene,
    any_held_out,
    is_held_out,
    place,
    relation,
)

TASKS = ("single", "color", "color_attribution", "two", "counting", "position")
TASK_WEIGHTS = (8, 12, 20, 15, 20, 25)  # binding attributes and places to two things is learnt last
DRAWN_WEIGHTS = (4, 5, 18, 38, 18, 17)  # two things whose colors no word ties to them are drawn right last
PREFIXES = ("", "a photo of ", "an image of ", "a picture of ")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
NUMBERS = scoring.WORDS[:5]
# What is never shown is never asked for in vain: training would teach that it does not exist.
SHOWN = [kind for kind in itertools.product(COLORS, SHAPES) if not any_held_out((kind,))]
PLURALS = {shape: shape + ("es" if shape == "cross" else "s") for shape in SHAPES}


@dataclass(frozen=True)
class Request:
    """What a prompt asks for: `count` objects of each kind; `relation` is the first's to the second."""

    kinds: tuple[Kind, ...]
    count: int = 1
    relation: str | None = None

    @property
    def task(self) -> str:
        """The request's name in TASKS."""
        colored = any(color for color, _ in self.kinds)
        if len(self.kinds) == 1:
            return "counting" if self.count > 1 else "color" if colored else "single"
        return "position" if self.relation else "color_attribution" if colored else "two"

    @property
    def text(self) -> str:
        """The prompt, without prefix."""
        return f" {self.relation or 'and'} ".join(phrase(*kind, self.count) for kind in self.kinds)


def phrase(color: str | None, shape: str, count: int = 1) -> str:
    """Things of one kind as a prompt names them: `an orange star`, `two hearts`."""
    noun = " ".join(word for word in (color, shape if count == 1 else PLURALS[shape]) if word)
    return f"{NUMBERS[count] if count > 1 else 'an' if noun[0] in 'aeiou' else 'a'} {noun}"


_HUE = f"(?:({'|'.join(COLORS)}) )?"
_THING = f"an? {_HUE}({'|'.join(SHAPES)})"
_THINGS = f"({'|'.join(NUMBERS[2:])}) {_HUE}({'|'.join(PLURALS.values())})"
_LINK = f" (and|{'|'.join(RELATIONS)}) "
_PROMPT = re.compile(f"(?:{'|'.join(PREFIXES)})(?:{_THING}(?:{_LINK}{_THING})?|{_THINGS})")


def parse_prompt(prompt: str) -> Request:
    """Read a prompt, with or without prefix; raises ValueError if it is not of this world."""
    match = _PROMPT.fullmatch(prompt)
    if not match:
        raise ValueError(f"got the prompt {prompt!r}, expected the form 'a red circle left of a blue square'")
    color, shape, link, color2, shape2, number, shared_color, plural = match.groups()
    if number:
        return Request(((shared_color, SHAPES[[*PLURALS.values()].index(plural)]),), NUMBERS.index(number))
    kinds = ((color, shape), (color2, shape2)) if link else ((color, shape),)
    return Request(kinds, relation=link if link in RELATIONS else None)


def scene_for_prompt(prompt: str, rng: random.Random) -> Scene:
    """Draw a scene of exactly what the prompt asks for; colors it does not name may be held-out ones."""
    request = parse_prompt(prompt)
    # The uncolored things of a group share a color half of the time.
    shared = rng.choice(list(COLORS)) if request.count > 1 and rng.random() < 0.5 else None
    kinds = [(c or shared or rng.choice(list(COLORS)), shape) for c, shape in request.kinds * request.count]
    return Scene(rng.choice(BACKGROUNDS), place(kinds, request.relation, rng))


def sample_training_example(rng: random.Random, weights: Sequence[float] = TASK_WEIGHTS) -> tuple[str, str, Scene]:
    """Draw a prompt, its task, one of TASKS by `weights`, and a scene of exactly what it asks for; never held out."""
    (task,) = rng.choices(TASKS, weights)
    while True:
        prompt = rng.choice(PREFIXES) + _draw_request(task, rng).text
        scene = scene_for_prompt(prompt, rng)
        if not is_held_out(scene):
            return prompt, task, scene


def sample_prompts(task: str, n: int, seed: int, held_out: bool = False) -> list[str]:
    """Draw n prompts, all of held-out things or none; raises ValueError if the task has no such prompts."""
    known = [name for name in TASKS if not (held_out and name in ("single", "two"))]  # these name no colors
    if task not in known:
        raise ValueError(f"got {task!r} with held_out={held_out}, expected one of {', '.join(known)}")
    rng = random.Random(seed)
    requests = (_draw_request(task, rng) for _ in itertools.count())
    wanted = (request.text for request in requests if any_held_out(request.kinds) == held_out)
    return list(itertools.islice(wanted, n))


def _draw_request(task: str, rng: random.Random) -> Request:
    width = 1 if task in ("single", "color", "counting") else 2
    colored = task.startswith("color") or (task in ("counting", "position") and rng.random() < 0.5)
    colors = rng.sample(list(COLORS), width) if colored else [None] * width
    kinds = tuple(zip(colors, rng.sample(SHAPES, width), strict=True))
    link = rng.choice(RELATIONS) if task == "position" else None
    return Request(kinds, rng.randint(2, 4) if task == "counting" else 1, link)


def caption(scene: Scene) -> str:
    """Describe a scene as a prompt, from the top left corner on; raises ValueError if no prompt can."""
    return request(sorted(scene.objects, key=lambda item: item.x + item.y)).text


def retell(scene: Scene, rng: random.Random) -> str:
    """Any prompt that a scene fits: with or without colors and relation, in any order; raises like `caption`."""
    things = rng.sample(scene.objects, len(scene.objects))
    return request(things, colored=rng.random() < 0.4, related=rng.random() < 0.3).text


def request(things: Sequence[Object], colored: bool = True, related: bool = True) -> Request:
    """What a prompt for just these things asks for, in their order; raises like `caption`."""
    colors, shapes = {item.color for item in things}, {item.shape for item in things}
    if len(shapes) == 1 and len(things) <= 4:
        return Request(((colors.pop() if colored and len(colors) == 1 else None, shapes.pop()),), len(things))
    if len(things) != 2:
        raise ValueError(f"got {len(things)} objects, expected 1 to 4 of one shape or 2 of different shapes")
    kinds = tuple((item.color if colored else None, item.shape) for item in things)
    return Request(kinds, relation=relation(*things) if related else None)


def tells(caption: str, prompt: str) -> bool:
    """Say whether a caption tells just what a prompt asks for: the same things, related as it says, in any order.

    Colors and relations that the prompt leaves open may be any; a caption that is not of this world tells nothing.
    """
    try:
        told = parse_prompt(caption)
    except ValueError:
        return False
    asked = parse_prompt(prompt)
    things, wanted = told.kinds * told.count, asked.kinds * asked.count
    for order in itertools.permutations(range(len(things))) if len(things) == len(wanted) else ():
        pairs = zip((things[i] for i in order), wanted, strict=True)
        fits = all(shape == other and color in (None, hue) for (hue, shape), (color, other) in pairs)
        said = told.relation if order[0] == 0 or told.relation is None else OPPOSITE[told.relation]
        if fits and asked.relation in (None, said):
            return True
    return False


def questions(scene: Scene, rng: random.Random) -> list[tuple[str, str, str]]:
    """Ask one (kind, question, answer) of each kind the scene decides; raises like `caption`."""
    asked = [("caption", "Describe the image.", caption(scene))]
    colors, shapes = [item.color for item in scene.objects], [item.shape for item in scene.objects]
    if alone := [item for item in scene.objects if shapes.count(item.shape) == 1]:
        item = rng.choice(alone)
        asked.append(("color", f"What color is the {item.shape}?", item.color))
    if alone := [item for item in scene.objects if colors.count(item.color) == 1]:
        item = rng.choice(alone)
        asked.append(("shape", f"What shape is the {item.color} object?", item.shape))
    counted = rng.choice([None, rng.choice(shapes), rng.choice(SHAPES)])
    total, noun = (shapes.count(counted), PLURALS[counted]) if counted else (len(shapes), "objects")
    asked += [("count", f"How many {noun} are there?", NUMBERS[total]), _ask_exists(scene, rng)]
    if are_two_related(scene):
        asked += _ask_places(rng, *rng.sample(scene.objects, 2))
    return asked


def placed(scene: Scene, rng: random.Random) -> list[tuple[str, str]]:
    """Ask whether one of two things lies where it does, and where it does not, with the answers; nothing of others."""
    if not are_two_related(scene):
        return []
    one, other = rng.sample(scene.objects, 2)
    true = relation(one, other)
    wrong = rng.choice([name for name in RELATIONS if name != true])
    return [
        (f"Is the {one.shape} {said} the {other.shape}?", answer) for said, answer in ((true, "yes"), (wrong, "no"))
    ]


def judged(scene: Scene, rng: random.Random) -> list[tuple[str, str]]:
    """What `scoring` asks to see whether a picture shows a prompt, one that the scene fits or another, and the answers.

    Raises like `caption`.
    """
    drawn = (_draw_request(rng.choices(TASKS, TASK_WEIGHTS)[0], rng) for _ in itertools.count())
    other = next(request for request in drawn if not any_held_out(request.kinds))
    request = rng.choice([parse_prompt(retell(scene, rng)), other])
    asked = scoring.questions(request.text, "parts")
    if request.count > 1:
        return [(asked[0].text, NUMBERS[sum(item.is_a(request.kinds[0]) for item in scene.objects)])]
    found = [[item for item in scene.objects if item.is_a(kind)] for kind in request.kinds]
    answers = [bool(items) for items in found]
    if request.relation:
        answers.append(any(relation(one, other) == request.relation for one in found[0] for other in found[1]))
    return [(question.text, "yes" if true else "no") for question, true in zip(asked, answers, strict=True)]


def are_two_related(scene: Scene) -> bool:
    """Whether there are just two things, of two shapes, of which one lies somewhere of the other by the rule."""
    return len(scene.objects) == len({item.shape for item in scene.objects}) == 2 and bool(relation(*scene.objects))


def _ask_exists(scene: Scene, rng: random.Random) -> tuple[str, str, str]:
    present = [(item.color, item.shape) for item in scene.objects]
    if rng.random() < 0.5:
        return "exists", f"Is there {phrase(*rng.choice(present))}?", "yes"
    colors, shapes = {item.color for item in scene.objects}, {item.shape for item in scene.objects}
    absent = [kind for kind in SHOWN if kind not in present]
    near = [(color, shape) for color, shape in absent if color in colors or shape in shapes]
    return "exists", f"Is there {phrase(*rng.choice(near if rng.random() < 0.5 else absent))}?", "no"


def _ask_places(rng: random.Random, one: Object, other: Object) -> list[tuple[str, str, str]]:
    true = relation(one, other)
    said = true if rng.random() < 0.5 else rng.choice([name for name in RELATIONS if name != true])
    return [
        ("relation", f"Is the {one.shape} {said} the {other.shape}?", "yes" if said == true else "no"),
        ("where", f"Where is the {one.shape}?", f"{true} the {other.shape}"),
        ("what", f"What is {true} the {other.shape}?", phrase(one.color, one.shape)),
    ]
