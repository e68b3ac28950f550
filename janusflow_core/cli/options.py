"""What several commands share: which model runs and where, and how words reach the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

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

    @contextmanager
    def loading(self) -> Iterator[dict[str, Any]]:
        """Device and dtype as JanusFlowPipeline.from_pretrained takes them, and a bar while it reads the model."""
        from ..device import usable_device

        place = {"device": usable_device(self.device), "dtype": torch_dtype(self.dtype)}
        with progress("loading") as show:
            yield {**place, "on_progress": show}


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


@contextmanager
def status(text: str = "") -> Iterator[Callable[[str], None]]:
    """A line on the terminal that says what is going on; what is inside may change it."""
    from tqdm import tqdm

    with tqdm(bar_format="{desc}", desc=text, leave=False, disable=None) as line:
        yield line.set_description_str


@contextmanager
def progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on the terminal while something is counted: what is inside tells it how many are done, and of how many."""
    from tqdm import tqdm

    with tqdm(desc=title, leave=False, disable=None) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show
