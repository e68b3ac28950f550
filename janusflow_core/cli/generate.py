"""janusflow generate and sweep: prompts to pictures, one by one or on a sheet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ..sheet import Axis, sheet, yes_or_no
from ..wildcards import expand, read_prompts
from .drawing import DRAWING, DrawOptions
from .loading import LoadOptions, lora_is_there
from .options import at_least_one, make_folder, progress
from .origin import SWEEP_KEY, Origin

if TYPE_CHECKING:
    from PIL import Image
    from typing_extensions import Self

    from ..pipeline import JanusFlowPipeline

    Drawn = tuple[int, tuple[str, int, Image.Image]]  # number, prompt, seed, picture

# What the pipeline takes by the same name, and what it is where neither the user nor --like says anything.
SETTINGS: dict[str, Any] = {
    **DRAWING,
    "variation_strength": 0.0,
    "strength": 1.0,
    "differential": False,
}


# What `sweep` can go through, and what reads its values.
KINDS: dict[str, Callable[[str], Any]] = {
    "prompt": str,
    "negative_prompt": str,
    "seed": int,
    "steps": int,
    "guidance": float,
    "guidance_start": float,
    "guidance_end": float,
    "guidance_rescale": float,
    "cfg_zero_star": yes_or_no,
    "solver": str,
    "shift": float,
    "variation_seed": int,
    "variation_strength": float,
    "strength": float,
    "differential": yes_or_no,
    "width": int,
    "height": int,
}


@dataclass(frozen=True, kw_only=True)
class Generate(DrawOptions):
    """Draw pictures of prompts; prints the path of each PNG, which remembers how it was made."""

    prompt: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PROMPT...", help_behavior_hint="(required)")]
    """What to draw, several one after the other. {red|blue} is one of these for each picture, by its seed. Weights as
    in (red:1.2) have no meaning."""
    prompts: Path | None = None
    """A text file with more prompts, one a line; # begins a remark."""
    wildcards: Path | None = None
    """A folder of lists: with color.txt in it, __color__ in a prompt is one of its lines for each picture."""
    like: Path | None = None
    """A picture that this command drew: it is drawn again, with whatever is said besides changed."""
    out: Path = Path(".")
    """Folder for the pictures, janusflow_<its own seed>_<number>.png; nothing in it is overwritten."""
    num_images: int | None = None
    """Pictures of each prompt; 1, or one for each seed, by default."""
    best_of: int = 1
    """Draw so many for each picture and keep the one that the model itself finds to show the prompt best; its score,
    0 to 1, is printed behind its path."""
    batch_size: int = 16
    """So many pictures are drawn at once; memory grows with it, the pictures stay the same."""
    seed: tuple[int, ...] | None = None
    """One counts on from picture to picture, 0 by default; of several each prompt is drawn with every one."""
    variation_seed: int | None = None
    """Turn the noise towards that of this seed, which counts on too."""
    variation_strength: float | None = None
    """How far it turns, 0 to 1."""
    init_image: Path | None = None
    """Start from this picture instead of from noise alone."""
    strength: float | None = None
    """How far --init-image is dissolved, above 0 and up to 1, the default."""
    mask: Path | None = None
    """White where --init-image is painted anew, black where it stays, a mix between."""
    differential: bool = False
    """Grey in --mask says when painting begins, the darker the later."""

    def run(self) -> int:
        """Draw and save; the status is 0."""
        from ..png import save_new

        settled, pipe, prompts, seeds = self._ready()
        rows = enumerate(zip(prompts, seeds, settled._drawn(pipe, prompts, seeds), strict=True))
        while candidates := [*islice(rows, self.best_of)]:
            (row, (prompt, seed, picture)), score = self._best(pipe, candidates)
            origin = settled._origin(prompt, seed, row, picture.size)
            print(f"{save_new(self.out, f'janusflow_{seed}', picture, origin.chunks())}{score}", flush=True)
        return 0

    def _best(self, pipe: JanusFlowPipeline, candidates: list[Drawn]) -> tuple[Drawn, str]:
        """The best of some pictures of a prompt and what is printed of its score; of one, itself and nothing."""
        if self.best_of == 1:
            return candidates[0], ""
        scores = pipe.score([picture for _, (*_, picture) in candidates], candidates[0][1][0])
        best = max(range(len(scores)), key=scores.__getitem__)
        return candidates[best], f"\t{scores[best]:.4f}"

    def _ready(self) -> tuple[Self, JanusFlowPipeline, list[str], list[int]]:
        """The same command with nothing left open, the model, and the prompt and seed of each picture."""
        asked = self if self.like is None else self._completed(Origin.of(self.like), self.like.name)
        prompts, seeds = asked._rows()
        if asked.init_image is None and (asked.mask is not None or asked.strength not in (None, 1.0)):
            raise ValueError("got --strength or --mask without --init-image, which they change: name that picture too")
        make_folder(self.out)
        asked._pictures()  # what cannot be opened is told before the model is loaded
        pipe = asked.pipeline()
        return asked.settled(pipe, SETTINGS), pipe, prompts, seeds

    def _rows(self) -> tuple[list[str], list[int]]:
        """The prompt and the seed of each picture."""
        from ..seeds import counted

        prompts = [*self.prompt, *(read_prompts(self.prompts) if self.prompts else ())]
        if not prompts or not all(prompt.strip() for prompt in prompts):
            raise ValueError('got no prompt or an empty one, say what to draw: janusflow generate "a red circle"')
        seeds = list(self.seed or (0,))
        each = len(seeds) if self.num_images is None else self.num_images
        at_least_one("--num-images", each)
        at_least_one("--batch-size", self.batch_size)
        at_least_one("--best-of", self.best_of)
        if len(seeds) > 1 and each != len(seeds):
            raise ValueError(f"got {len(seeds)} seeds for {each} pictures of a prompt: leave --num-images out")
        if len(seeds) > 1 and self.best_of > 1:
            raise ValueError(f"got {len(seeds)} seeds and --best-of, which draws with seeds of its own: give one seed")
        prompts = [prompt for prompt in prompts for _ in range(each * self.best_of)]
        seeds = seeds * (len(prompts) // each) if len(seeds) > 1 else counted(seeds[0], len(prompts))
        chances = [seeds[row - row % self.best_of] for row in range(len(prompts))]  # candidates share their prompt
        return [expand(prompt, chance, self.wildcards) for prompt, chance in zip(prompts, chances, strict=True)], seeds

    def _completed(self, made: Origin, name: str) -> Self:
        """The same command with what it leaves open taken from a picture; files must be named anew."""
        for option in ("init_image", "mask"):
            if (file := getattr(made, option)) and getattr(self, option) is None:
                raise ValueError(f"{name} was drawn with {file}: say where that is with --{option.replace('_', '-')}")
        if made.model != Path(self.model).name and self.model == LoadOptions.model:
            raise ValueError(f"{name} was drawn by {made.model}: say where that is with --model")
        loras = tuple(Path(text).name for text in made.lora)  # a picture may come from anywhere: it names no folder
        if not self.lora and (gone := [text for text in loras if not lora_is_there(text)]):
            raise ValueError(f"{name} was drawn with the LoRA {gone[0]}: say where that is with --lora")
        open_ones = [option for option in SETTINGS if getattr(self, option) is None or getattr(self, option) is False]
        values = {option: getattr(made, option) for option in open_ones} | {
            "prompt": self.prompt or (() if self.prompts else (made.prompt,)),
            "seed": self.seed or (made.seed,),
            "dtype": self.dtype or made.dtype,
            "lora": self.lora or loras,
        }
        if self.variation_seed is None:
            values["variation_seed"] = made.variation_seed
        return replace(self, **values)

    def _pictures(self) -> dict[str, Any]:
        """The picture to start from and the mask, opened."""
        from ..image import open_image

        return {
            option: open_image(file) for option in ("init_image", "mask") if (file := getattr(self, option)) is not None
        }

    def _drawn(self, pipe: JanusFlowPipeline, prompts: Sequence[str], seeds: Sequence[int]) -> Iterator[Image.Image]:
        """The pictures in their order, some at once, so that the first are saved before the last are begun."""
        settings, files = {option: getattr(self, option) for option in SETTINGS}, self._pictures()
        for first in range(0, len(prompts), self.batch_size):
            rows = range(first, min(first + self.batch_size, len(prompts)))
            with progress("drawing") as show:
                yield from pipe.generate(
                    [prompts[row] for row in rows],
                    seed=[seeds[row] for row in rows],
                    variation_seed=[self._other(row) for row in rows],
                    on_step=lambda done, total, _: show(done, total),
                    **settings,
                    **files,
                )

    def _other(self, row: int) -> int:
        """The seed that the noise of one picture is turned towards."""
        from ..seeds import later

        return later(self.variation_seed or 0, row)

    def _origin(self, prompt: str, seed: int, row: int, size: tuple[int, int]) -> Origin:
        """How one picture was made, by itself."""
        varied = {"variation_seed": self._other(row)} if self.variation_strength else {}
        files = {option: file.name for option in ("init_image", "mask") if (file := getattr(self, option)) is not None}
        begun = {} if self.init_image is None else {name: getattr(self, name) for name in ("strength", "differential")}
        strength = {"variation_strength": self.variation_strength}
        return self.origin(prompt, seed, size, **strength, **varied, **files, **begun)


@dataclass(frozen=True, kw_only=True)
class Sweep(Generate):
    """Draw a sheet for each prompt and seed, with settings that change from cell to cell; prints the sheets' paths."""

    columns: str = "steps=5,10,20,30"
    """What changes from column to column, any setting of generate; values that hold commas as prompt=a heart|a star."""
    rows: str = "guidance=1,2,4"
    """What changes from row to row; empty for one row."""

    def run(self) -> int:
        """Draw and save; the status is 0."""
        from ..png import save_new

        if self.best_of > 1:
            raise ValueError("got --best-of, but a sheet shows what every setting draws: leave it out")
        columns = Axis.parse(self.columns, KINDS)
        rows = Axis.parse(self.rows, KINDS) if self.rows else None
        settled, pipe, prompts, seeds = self._ready()
        for prompt, seed in zip(prompts, seeds, strict=True):
            lines = [{}] if rows is None else [{rows.name: value} for value in rows.values]
            changes = [[line | {columns.name: value} for value in columns.values] for line in lines]
            cells = [[settled._cell(pipe, prompt, seed, cell) for cell in line] for line in changes]
            whole = sheet(cells, columns.labels(), rows.labels() if rows is not None else [])
            origin = settled._origin(prompt, seed, 0, cells[0][0].size)
            text = origin.chunks(SWEEP_KEY, columns=self.columns, rows=self.rows)
            print(save_new(self.out, f"janusflow_sweep_{seed}", whole, text), flush=True)
        return 0

    def _cell(self, pipe: JanusFlowPipeline, prompt: str, seed: int, changes: dict[str, Any]) -> Image.Image:
        """The picture with these settings changed."""
        settings = dict(changes)
        prompt, seed = settings.pop("prompt", prompt), settings.pop("seed", seed)
        return next(replace(self, **settings)._drawn(pipe, [prompt], [seed]))
