"""Recipes: all that a training run is, in one YAML file, read strictly. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ..values import Part, expected, frozen, printable, read_text, short, shown
from .options import Projector
from .order import Task

RECIPES = Path(__file__).parent / "recipes"
Trained = Literal["language", "understanding", "generation", "aligners"]
ALL: tuple[Trained, ...] = get_args(Trained)
# The parts of a model that learn or do not, by how the names of their weights begin.
PARTS: dict[Trained, tuple[str, ...]] = {
    "language": ("language_model.",),
    "understanding": ("vision_und_enc_model.",),
    "generation": ("vision_gen_enc_model.", "vision_gen_dec_model."),
    "aligners": (
        "beg_of_und_embed",
        "vision_und_enc_aligner.",
        "vision_gen_enc_aligner.",
        "vision_gen_dec_aligner.",
        "vision_gen_dec_aligner_norm.",
    ),
}
# What may differ when a run goes on.
PLACES, MEANS = {"start", "vae", "data"}, {"at_once", "checkpointing", "shard", "workers"}
FREE = PLACES | MEANS | {"steps", "save_every", "keep", "samples"}
CAPTION = "Generate the caption of this picture."  # what pre-training asks of a captioned picture (paper, app. B)
Count = Annotated[int, Field(ge=1)]


class Strict(Part):
    """A group of a recipe's values: a key that is unknown is a mistake."""

    model_config = ConfigDict(extra="forbid")


class DataSet(Strict):
    """A folder of pictures with texts, a .jsonl, a .tar, or a folder or pattern of tars; `path` from the recipe on."""

    path: str = Field(min_length=1)
    task: Task | None = None
    """The one task that its rows are for; by default each serves all that it can."""
    times: Count = 1
    """How often its rows come in an epoch."""


class Shares(Strict):
    """How samples are mixed from a step on."""

    from_step: int = Field(default=0, ge=0)
    understanding: int = Field(default=0, ge=0)
    generation: int = Field(default=0, ge=0)
    text: int = Field(default=0, ge=0)

    def named(self) -> dict[Task, int]:
        """The shares by their tasks."""
        return {"understanding": self.understanding, "generation": self.generation, "text": self.text}


class Alignment(Strict):
    """REPA: hidden states behind a layer come to resemble what the understanding encoder sees (paper, eq. 8)."""

    weight: float = Field(default=1.0, ge=0)
    layer: int = Field(default=0, ge=0)
    """From 1; 0 is a quarter of the way, as in the paper."""
    projector: Projector = "mlp"


class Shown(Strict):
    """What is drawn of which prompts and said of which pictures, to look at."""

    every: int = Field(default=1000, ge=0)
    """Steps; 0 never."""
    prompts: tuple[str, ...] = ()
    pictures: tuple[str, ...] = ()


class Recipe(Strict):
    """A training run."""

    start: str = ""
    """The checkpoint to begin with: a bundled name, a folder or a file."""
    vae: str = ""
    """An SDXL VAE, where the start brings none."""
    renew: tuple[Trained, ...] = ()
    """Parts that begin anew, with random weights."""
    train: tuple[Trained, ...] = Field(default=ALL, min_length=1)
    """Parts that learn; the VAE never does, REPA's head always."""
    data: tuple[DataSet, ...] = ()
    mixture: tuple[Shares, ...] = Field(min_length=1)
    """How tasks are mixed, in whole shares."""

    steps: Count
    batch: Count
    """Samples a step, of all processes together."""
    at_once: Count = 8
    """Samples of one forward pass of a process; what is left of a batch follows in further ones."""
    learning_rate: float = Field(gt=0, le=1)
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: int = Field(default=0, ge=0)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    weight_decay: float = Field(default=0.0, ge=0)
    clip: float = Field(default=1.0, gt=0)
    average: float = Field(default=0.99, ge=0, lt=1)
    """The part of itself that the moving average of the weights keeps at each step."""

    length: Count = 4096
    """Tokens of a row, which several samples share."""
    format: Literal["plain", "chat"] = "chat"
    """plain: `<image><question> <answer>` and `<prompt><image>`; chat: exactly as inference asks."""
    question: str = Field(default=CAPTION, min_length=1)
    """What is asked of a picture that has a caption alone."""
    drop: float = Field(default=0.1, ge=0, le=1)
    """Share of prompts that are dropped, for guidance."""
    time_mean: float = Field(default=0.0, ge=-3, le=3)
    """Mean of the times' logit; below 0 more of them lie near the noise."""
    crops: int = Field(default=0, ge=0)
    """So many crops of a picture that is drawn, encoded once and kept beside the run; 0 takes another each time."""
    repa: Alignment = Alignment()

    precision: Literal["auto", "bf16", "fp32"] = "auto"
    checkpointing: bool = False
    """Compute a layer's activations again on the way back instead of keeping them: slower, in much less memory."""
    shard: bool = False
    """Divide weights, gradients and momenta among the processes (FSDP2) instead of repeating them (DDP)."""
    workers: int = Field(default=-1, ge=-1)
    """Processes that prepare batches, for each that trains; -1 takes four on a GPU, none on a CPU."""
    seed: int = Field(default=0, ge=0)

    save_every: Count = 1000
    keep: Count = 3
    """Checkpoints that are kept, the last ones."""
    samples: Shown = Shown()

    @field_validator("mixture")
    @classmethod
    def _in_order(cls, mixture: tuple[Shares, ...]) -> tuple[Shares, ...]:
        steps = [shares.from_step for shares in mixture]
        if steps[0] != 0 or sorted(set(steps)) != steps:
            raise ValueError("phases whose from_step begins with 0 and grows")
        if not all(any(shares.named().values()) for shares in mixture):
            raise ValueError("phases that each have a share above 0")
        return mixture


def parts_named(*parts: Trained) -> Callable[[str], bool]:
    """Whether a weight's name is one of these parts'."""
    beginnings = tuple(beginning for part in parts for beginning in PARTS[part])
    return lambda name: name.startswith(beginnings)


def lasting(recipe: Recipe) -> dict[str, Any]:
    """What must stay as it was when a run goes on; a cosine also needs its end."""
    free = FREE - {"steps"} if recipe.schedule == "cosine" else FREE
    return recipe.model_dump(mode="json", exclude=free, exclude_defaults=True)


def bundled_recipes() -> list[str]:
    """The recipes that ship with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def read_recipe(source: str | Path) -> Recipe:
    """The recipe in a YAML file, or of a bundled name; its paths are made those from where one stands.

    Raises FileNotFoundError, ValueError or ImportError with one sentence that says what to mend.
    """
    path = RECIPES / f"{source}.yaml" if str(source) in bundled_recipes() else Path(source)
    if not path.is_file():
        known = ", ".join(bundled_recipes())
        raise FileNotFoundError(f"{printable(source)} is neither a recipe's file nor one of {known}: check the name")
    recipe = parse_recipe(read_text(path), shown(path))
    at = path.parent
    return recipe.model_copy(
        update={
            "start": str(at / recipe.start) if (at / recipe.start).exists() and recipe.start else recipe.start,
            "vae": str(at / recipe.vae) if recipe.vae else "",
            "data": tuple(one.model_copy(update={"path": str(at / one.path)}) for one in recipe.data),
            "samples": recipe.samples.model_copy(
                update={"pictures": tuple(str(at / name) for name in recipe.samples.pictures)}
            ),
        }
    )


def parse_recipe(text: str, where: str) -> Recipe:
    """The recipe in a YAML text; raises ValueError with one sentence that says `where` it stood."""
    values = _parsed(text, where)
    try:
        return Recipe.model_validate(frozen(values))
    except ValidationError as wrong:
        first = min(wrong.errors(), key=lambda error: error["type"] != "extra_forbidden")
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        near = get_close_matches(str(first["loc"][-1]), [*_keys(Recipe)], n=1)
        raise ValueError(f"{where} has an unknown key {printable(key)}: {_hint(near)}")
    if first["type"] == "missing":
        raise ValueError(f"{where} lacks {key}: add it")
    raise ValueError(f"{key} in {where} is {short(first['input'])}, expected {expected(first)}: correct the recipe")


def _hint(near: list[str]) -> str:
    return f"did you mean {near[0]}?" if near else "take it out"


def _parsed(text: str, where: str) -> Mapping[Any, Any]:
    try:
        import yaml
    except ImportError as error:
        raise ImportError('recipes need PyYAML: pip install "pyyaml>=6"') from error

    class Loader(yaml.SafeLoader):
        """Reads 1e-4 as a number, which YAML 1.1 takes for a word."""

    number = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))
    try:
        values = yaml.load(text, Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not valid YAML ({' '.join(str(error).split())}): correct it") from error
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} holds no keys and values: see docs/training.md")
    return values


def _keys(kind: type[BaseModel]) -> Iterator[str]:
    """All keys that may stand in a recipe, on every level."""
    for name, told in kind.model_fields.items():
        yield name
        kinds = [part for part in (told.annotation, *get_args(told.annotation)) if isinstance(part, type)]
        yield from (key for part in kinds if issubclass(part, BaseModel) for key in _keys(part))
