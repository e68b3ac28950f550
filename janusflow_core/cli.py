"""The command line: `janusflow --help` lists the commands, each of which is one class below.

torch and everything that imports it are loaded by the command that needs them, so that help comes at once.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from . import __version__

if TYPE_CHECKING:
    import torch
    import tyro
    from PIL import Image

    from .pipeline import JanusFlowPipeline

DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """Which model runs, and where."""

    model: str = "janusflow-tiny"
    """A bundled name, a folder in the official layout or a .safetensors file."""
    device: str | None = None
    """cuda, cuda:1, mps or cpu; the best there is by default."""
    dtype: Literal["bf16", "fp32"] | None = None
    """What to compute in; bf16 on GPUs that have it by default, else fp32."""

    def load(self, vae: Path | None = None) -> JanusFlowPipeline:
        """The pipeline of these options; `vae` where the checkpoint brings none."""
        device, dtype = usable_device(self.device), torch_dtype(self.dtype)
        from .pipeline import JanusFlowPipeline

        return JanusFlowPipeline.from_pretrained(self.model, vae=vae, device=device, dtype=dtype)


@dataclass(frozen=True, kw_only=True)
class Generate(LoadOptions):
    """Draw pictures of prompts; prints the path of each PNG, which remembers how it was made."""

    prompt: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PROMPT...", help_behavior_hint="(required)")]
    """What to draw; several prompts are drawn together."""
    negative_prompt: str | None = None
    """What to stay away from."""
    out: Path = Path(".")
    """Folder for the pictures, janusflow_<seed>_<number>.png; nothing in it is overwritten."""
    num_images: int = 1
    """Pictures of each prompt."""
    width: int | None = None
    """In pixels, a multiple of 16; the size the model was trained at by default."""
    height: int | None = None
    """In pixels, a multiple of 16; the size the model was trained at by default."""
    steps: int = 30
    """Steps from noise to picture."""
    guidance: float = 2.0
    """How much the prompt outweighs the negative prompt; 1 switches guidance off."""
    solver: Literal["euler", "heun"] = "euler"
    """heun takes twice the time of euler and needs fewer steps."""
    seed: int = 0
    """The k-th picture is the same as the only picture of seed + k."""
    init_image: Path | None = None
    """Start from this picture instead of from noise alone."""
    strength: float = 1.0
    """How far --init-image is dissolved, above 0 and up to 1."""
    mask: Path | None = None
    """White where --init-image is painted anew, black where it stays."""
    vae: Path | None = None
    """An SDXL VAE, a .safetensors file or a diffusers folder, where the model brings none."""

    def run(self) -> int:
        """Draw and save; the status is 0."""
        if not self.prompt:
            raise ValueError('got no prompt, expected one or more: janusflow generate "a red circle"')
        if self.strength != 1.0 and self.init_image is None:
            raise ValueError("got --strength without --init-image, which it dissolves: name that picture too")
        self.out.mkdir(parents=True, exist_ok=True)
        from .png import save_new

        for row, picture in enumerate(self._draw()):
            print(save_new(self.out, f"janusflow_{self.seed}", picture, self._origin(row)), flush=True)
        return 0

    def _draw(self) -> list[Image.Image]:
        from tqdm import tqdm

        from .image import open_image

        start, mask = (path and open_image(path) for path in (self.init_image, self.mask))
        pipe = self.load(self.vae)

        def advance(*_: object) -> None:
            bar.update()

        with tqdm(total=self.steps, unit="step", leave=False, disable=None) as bar:
            return pipe.generate(
                self.prompt,
                negative_prompt=self.negative_prompt,
                width=self.width,
                height=self.height,
                num_images=self.num_images,
                steps=self.steps,
                guidance=self.guidance,
                solver=self.solver,
                seed=self.seed,
                init_image=start,
                strength=self.strength,
                mask=mask,
                on_step=advance,
            )

    def _origin(self, row: int) -> dict[str, str]:
        """How picture `row` was made, by itself; paths are cut to names, because pictures get shared."""
        values = {
            "prompt": self.prompt[row // self.num_images],
            "negative_prompt": self.negative_prompt,
            "seed": self.seed + row,
            "steps": self.steps,
            "guidance": self.guidance,
            "solver": self.solver,
            "model": Path(self.model).name,
            "version": f"janusflow {__version__}",
        }
        if self.init_image is not None:
            values |= {"init_image": self.init_image.name, "strength": self.strength}
        if self.mask is not None:
            values["mask"] = self.mask.name
        return {name: str(value) for name, value in values.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Describe(LoadOptions):
    """Say in words what pictures show; for several pictures, prints lines of path, tab and answer."""

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

    def run(self) -> int:
        """Answer; the status is 0."""
        if not self.picture:
            raise ValueError("got no picture, expected one or more: janusflow describe picture.png")
        if missing := [path for path in self.picture if not path.is_file()]:
            raise FileNotFoundError(f"no picture at {missing[0]}: check the path")
        pipe = self.load()
        if self.together or len(self.picture) == 1:
            self._answer(pipe, self.picture, on_token=stream_words())
            print()
        else:
            for path in self.picture:
                print(f"{path}\t{one_line(self._answer(pipe, [path]))}", flush=True)
        return 0

    def _answer(
        self, pipe: JanusFlowPipeline, paths: Sequence[Path], on_token: Callable[[str], None] | None = None
    ) -> str:
        from .image import open_image

        return pipe.describe(
            [open_image(path) for path in paths],
            self.question,
            temperature=self.temperature,
            max_new_tokens=self.max_new_tokens,
            top_p=self.top_p,
            seed=self.seed,
            on_token=on_token,
        )


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Rewrite a checkpoint as one .safetensors file or as a folder in the official layout, and compare the two."""

    source: Annotated[str, tyro.conf.arg(metavar="SOURCE")]
    """A bundled name, a folder in the official layout or a .safetensors file."""
    target: Annotated[Path, tyro.conf.arg(metavar="TARGET")]
    """A name that ends in .safetensors makes a file, any other a folder; must not exist yet."""
    vae: Path | None = None
    """Put this VAE in: an SDXL VAE as a .safetensors file or a diffusers folder."""
    dtype: Literal["bf16", "fp32", "fp16"] | None = None
    """Convert the weights; by default they stay as they are."""

    def run(self) -> int:
        """Convert; the status is 0."""
        if self.target.exists():
            raise FileExistsError(f"{self.target} exists already: choose another name or move it away")
        if self.target.suffix in (".bin", ".pt", ".pth", ".ckpt"):
            raise ValueError(f"got {self.target.name}, expected a name that ends in .safetensors, or a folder's name")
        from . import checkpoint, vae

        own_vae = None if self.vae is None else vae.load_vae_files(self.vae)
        with runtime_errors_in_words():
            checkpoint.convert(self.source, self.target, torch_dtype(self.dtype), own_vae)
        files = (self.target, *self.target.rglob("*"))
        size = sum(file.stat().st_size for file in files if file.is_file())
        print(f"wrote {self.target}, {size / 1e6:,.1f} MB, and read it back: the weights are the same")
        return 0


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Look for what keeps JanusFlow from working here; prints a report to paste into an issue."""

    model: str | None = None
    """Examine this checkpoint too."""

    def run(self) -> int:
        """Examine; the status is 1 if something is broken, else 0."""
        from .doctor import examine, report

        findings = examine(self.model)
        print(report(findings))
        return int(any(finding.level == "error" for finding in findings))


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Words to picture to words in a real ComfyUI; prints the prompt, the picture's path and the answer."""

    prompt: str | None = None
    """Draw this instead of the workflow's own prompt."""
    comfyui: Path | None = None
    """ComfyUI's folder; by default COMFYUI_PATH, comfy-cli's workspace, or a download into the cache."""

    def run(self) -> int:
        """Start ComfyUI, run the workflow and keep its picture in demo_output; the status is 0."""
        from tqdm import tqdm

        from .demo import there_and_back

        with runtime_errors_in_words(), tqdm(bar_format="{desc}", leave=False, disable=None) as bar:
            show, out = bar.set_description_str, Path("demo_output")
            prompt, path, words = there_and_back(self.prompt, self.comfyui, out, show)
        print(one_line(prompt), path, one_line(words), sep="\n")
        return 0


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a model from nothing."""

    recipe: Literal["tiny"]
    """tiny: the bundled model, about two hours on two cores."""
    out: Path = Path("runs/tiny")
    """Folder for what each stage leaves; a stage that is done is not run again."""
    scale: float = 1.0
    """Part of the full training; 0.001 runs every stage in a minute, to no use."""

    def run(self) -> int:
        """Train; the status is 0."""
        from .tiny import train

        logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s")
        train(self.out, self.scale)
        return 0


@dataclass(frozen=True, kw_only=True)
class Evaluate(LoadOptions):
    """Measure what a checkpoint knows of the bundled model's world: its pictures by a judge, its answers by heart."""

    world: Literal["shapes"]
    """shapes: the world that janusflow-tiny was trained on."""
    per_task: int = 25
    """Pictures of each task; their error bars shrink with the root of this."""
    scenes: int = 60
    """Renders to ask questions about."""
    steps: int = 30
    """Steps from noise to picture."""
    guidance: float = 4.0
    """How much the prompt outweighs no prompt."""
    seed: int = 0
    """Other seeds draw other prompts, noise and scenes."""
    held_out: bool = False
    """Draw only combinations of color and shape that training never showed."""

    def run(self) -> int:
        """Score and print a table; the status is 0."""
        from .evaluation import overall, score_answers, score_pictures

        pipe = self.load()
        drawn = score_pictures(
            pipe, self.per_task, seed=self.seed, steps=self.steps, guidance=self.guidance, held_out=self.held_out
        )
        told = score_answers(pipe, self.scenes, seed=self.seed)
        for title, scores in (("pictures", drawn), ("answers", told)):
            print(f"{title:<20}{overall(scores):.3f}")
            for name, score in scores.items():
                print(f"  {name:<18}{score}")
        return 0


COMMANDS = {
    "generate": Generate,
    "describe": Describe,
    "convert": Convert,
    "doctor": Doctor,
    "demo": Demo,
    "evaluate": Evaluate,
    "train": Train,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; what the user can mend ends in one line on stderr and status 2."""
    try:
        return parse(argv).run()
    except KeyboardInterrupt:
        return 130
    except (ValueError, ImportError, OSError) as error:
        print(f"janusflow: {one_line(str(error))}", file=sys.stderr)
        return 2


def parse(argv: Sequence[str] | None) -> Any:
    """The command that the arguments ask for; help and misspelt arguments leave the program."""
    global tyro  # where the fields' annotations are looked up
    try:
        import tyro
    except ImportError as error:
        raise ImportError('the command line needs tyro: pip install "janusflow[cli]"') from error
    config = (tyro.conf.PositionalRequiredArgs, tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone)
    return tyro.extras.subcommand_cli_from_dict(
        COMMANDS,
        prog="janusflow",
        args=argv,
        config=config,
        description=f"JanusFlow {__version__}: one small model that draws pictures and reads them.",
    )


def usable_device(name: str | None) -> torch.device | None:
    """The device, tried out; raises ValueError where this machine or this torch has none of that name."""
    if name is None:
        return None
    import torch

    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"got device {name!r}, expected one that works here ({reason}): try cpu") from error


def torch_dtype(name: str | None) -> torch.dtype | None:
    """torch's type for bf16, fp16 or fp32."""
    import torch

    return None if name is None else getattr(torch, DTYPES[name])


def one_line(text: str) -> str:
    """The text with every run of white space as one space."""
    return " ".join(text.split())


def stream_words() -> Callable[[str], None]:
    """A receiver of an answer's pieces that prints them as they come, less the white space before the first."""
    begun = False

    def write(piece: str) -> None:
        nonlocal begun
        piece = piece if begun else piece.lstrip()
        begun = begun or bool(piece)
        print(piece, end="", flush=True)

    return write


@contextmanager
def runtime_errors_in_words() -> Iterator[None]:
    """Lets RuntimeErrors that are sentences end like other errors, with the log that follows them shown before."""
    try:
        yield
    except RuntimeError as error:
        sentence, _, log = str(error).partition("\n")
        print(log, end="\n" if log else "", file=sys.stderr)
        raise OSError(sentence) from error


if __name__ == "__main__":
    sys.exit(main())
