"""janusflow describe: pictures to words."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ..values import printable
from .loading import LoadOptions
from .options import one_line, stream_words

if TYPE_CHECKING:
    from ..image import ImageConfig, Picture
    from ..pipeline import JanusFlowPipeline


@dataclass(frozen=True)
class Answer:
    """What was answered, words or parsed JSON, and the probability of each choice where there was one."""

    answer: Any
    probabilities: dict[str, float] | None = None

    def line(self) -> str:
        """For people and shells: the answer, and its probability behind a tab."""
        words = one_line(self.answer if isinstance(self.answer, str) else json.dumps(self.answer, ensure_ascii=False))
        return words if self.probabilities is None else f"{words}\t{self.probabilities[self.answer]:.4f}"

    def row(self, pictures: Sequence[Path]) -> str:
        """For programs: an object that also names the picture, or all of them."""
        paths = [printable(path) for path in pictures]
        named = {"picture": paths[0]} if len(paths) == 1 else {"pictures": paths}
        chances = {} if self.probabilities is None else {"probabilities": self.probabilities}
        return json.dumps(named | {"answer": self.answer} | chances, ensure_ascii=False)


@dataclass(frozen=True, kw_only=True)
class Describe(LoadOptions):
    """Say in words what pictures show; for several, prints lines of path, tab and answer, and skips what is none."""

    picture: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="PICTURE...", help_behavior_hint="(required)")]
    """Files to describe."""
    question: str = "Describe the image."
    """What to ask about each picture."""
    together: bool = False
    """Ask once about all pictures instead of once about each."""
    max_new_tokens: int = 512
    """Longest answer, in tokens."""
    temperature: float = 0.0
    """0 always takes the likeliest word; higher is freer."""
    top_p: float = 1.0
    """Draw only from the likeliest words that together have this probability."""
    seed: int = 0
    """For --temperature above 0."""
    choices: str | None = None
    """The answers that may be given, with commas between: the likeliest is chosen, with its probability."""
    schema: Path | None = None
    """A file with a JSON schema that each answer has to satisfy; needs llguidance."""
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print an object for each picture: picture, answer and, with --choices, the probability of each."""

    def run(self) -> int:
        """Answer; the status is 1 if one of several pictures cannot be read, else 0."""
        self._check()
        from ..pipeline import JanusFlowPipeline

        with self.loading() as place:
            pipe = JanusFlowPipeline.from_pretrained(self.model, **place)
        if not self.together and len(self.picture) > 1:
            return self._table(pipe)
        if self.as_json or self.choices is not None or self.schema is not None:
            (found,) = self._asked(pipe, self.picture, together=True)
            print(found.row(self.picture) if self.as_json else found.line())
            return 0
        pipe.describe(
            self.picture, self.question, together=True, seed=self.seed, on_token=stream_words(), **self._how()
        )
        print()
        return 0

    def _how(self) -> dict[str, Any]:
        names = ("max_new_tokens", "temperature", "top_p")
        return {name: getattr(self, name) for name in names}

    def _asked(self, pipe: JanusFlowPipeline, pictures: Sequence[Any], together: bool = False) -> list[Answer]:
        """What is answered about each picture, or about all `together`."""
        about = ([*pictures], self.question)
        if self.choices is not None:
            found = pipe.choose(*about, [choice.strip() for choice in self.choices.split(",")], together=together)
            return [Answer(one.answer, one.probabilities) for one in ([found] if together else found)]
        if self.schema is not None:
            schema = self.schema.read_text(encoding="utf-8")
            found = pipe.structured(*about, schema, together=together, max_new_tokens=self.max_new_tokens)
        else:
            seeds = [self.seed] * len(pictures)
            found = pipe.describe(*about, together=together, seed=seeds, **self._how())
        return [Answer(one) for one in ([found] if together else found)]

    def _check(self) -> None:
        if not self.picture:
            raise ValueError("got no picture, expected one or more: janusflow describe picture.png")
        if self.choices is not None and self.schema is not None:
            raise ValueError("got --choices and --schema, which both say what may be answered: leave one out")
        if not self.question.strip():
            raise ValueError("the question is empty: ask something, or leave --question away")
        for path in self.picture:
            if path.is_dir():
                raise ValueError(f"{path} is a folder: name its pictures, for example {path / '*.png'}")
            if "*" in path.name and not path.exists():
                raise FileNotFoundError(f"no picture is called {path}: check the folder, and leave the quotes away")
        if not any(path.exists() for path in self.picture):
            raise FileNotFoundError(f"no picture at {self.picture[0]}: check the path")

    def _table(self, pipe: JanusFlowPipeline) -> int:
        """Print a line for each picture; what cannot be read is named on stderr and makes the status 1."""
        from tqdm import tqdm

        readable, at_once = self._readable(pipe.image_config), pipe.at_once(self.question, self.max_new_tokens)
        answered = 0
        with tqdm(total=len(self.picture), unit="picture", leave=False, disable=None) as bar:
            while some := [*islice(readable, at_once)]:
                pictures = [picture for _, picture in some]
                for (path, _), answer in zip(some, self._asked(pipe, pictures), strict=True):
                    tqdm.write(answer.row([path]) if self.as_json else f"{printable(path)}\t{answer.line()}")
                sys.stdout.flush()
                answered += len(some)
                bar.update(len(some))
        return int(answered < len(self.picture))

    def _readable(self, size: ImageConfig) -> Iterator[tuple[Path, Picture]]:
        """The pictures that can be read; the others are named on stderr."""
        from tqdm import tqdm

        from ..image import open_as_seen

        for path in self.picture:
            try:
                yield path, open_as_seen(path, size)
            except (OSError, ValueError) as error:
                tqdm.write(f"janusflow: {one_line(str(error))}", file=sys.stderr)
