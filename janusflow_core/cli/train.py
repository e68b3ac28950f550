"""janusflow train: a model from nothing, a LoRA from captioned pictures, or whatever a recipe says."""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ..train.options import FineTuneOptions
from .loading import LoadOptions, dtype_name, torch_dtype
from .options import make_folder, one_line, progress
from .recipes import ByRecipe
from .steps import between_steps, side_by_side, steps_shown

if TYPE_CHECKING:
    import torch

    from ..pipeline import JanusFlowPipeline
    from ..train.finetune import FineTune
    from ..train.loop import OnStep
    from ..train.subject import Subject

SHOWN = 4  # texts that are drawn as samples
DTYPE = "dtype"  # in the memory of a run


@dataclass(frozen=True, kw_only=True)
class Tiny:
    """Train the bundled model from nothing, or further, on all CPU cores or a GPU."""

    out: Path = Path("runs/tiny")
    """Folder for what each stage leaves; the same command goes on where a stopped one was."""
    minutes: float = 100.0
    """How long to train, all stages together; 1 tries every stage, to no use."""
    start: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """Go on from this checkpoint of the bundled model's shape, its VAE kept, instead of from nothing."""
    eyes: bool = True
    """Train the understanding encoder as well; --no-eyes keeps that of --from."""
    rate: float | None = None
    """Part of the full learning rate to begin everything together at; less changes less of what --from can."""

    def run(self) -> int:
        """Train and print the path of the checkpoint; the status is 0."""
        if not 0 < self.minutes < math.inf:
            raise ValueError(f"got --minutes {self.minutes:g}, expected a positive number")
        if self.rate is not None and not 0 < self.rate <= 1:
            raise ValueError(f"got --rate {self.rate:g}, expected a part of the full rate: above 0, at most 1")
        if self.start is None and not self.eyes:
            raise ValueError("--no-eyes keeps a checkpoint's encoder: name the checkpoint with --from")
        from ..world.recipe import train

        logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s")
        print(train(self.out, self.minutes, self.start, eyes=self.eyes, rate=self.rate))
        return 0


@dataclass(frozen=True, kw_only=True)
class Lora(LoadOptions):
    """Train a LoRA on captioned pictures; prints the path of its file, which ComfyUI's LoRA loaders take as well."""

    images: Path | None = None
    """Folder with pictures, each with a .txt of the same name that says what it shows."""
    out: Path = Path("lora.safetensors")
    """The LoRA, a name that ends in .safetensors. Its log, samples and state lie beside it in NAME_run; the same
    command goes on where a stopped one was."""
    caption: str = ""
    """What the pictures show that have no .txt of their own."""
    vae: Path | None = None
    """An SDXL VAE, a .safetensors file or a diffusers folder, where the model brings none."""
    sample_every: int = 100
    """Steps between two samples, which draw or caption the first of the pictures; 0 makes none."""
    settings: FineTuneOptions = field(default_factory=FineTuneOptions)

    def run(self) -> int:
        """Train; the status is 0, or 130 after Ctrl-C, with what was trained until then written all the same."""
        self._check()
        from ..checkpoint import open_checkpoint
        from ..lora import save_lora
        from ..train.examples import read_folder
        from ..train.finetune import Base, FineTune, check_settings, look_at, lora_metadata
        from ..train.optimizer import Diverged

        assert self.images is not None
        captioned = read_folder(self.images, one_line(self.caption))
        pipe = self._load()
        subject = subject_of(pipe)
        base = Base.of(open_checkpoint(self.model))
        check_settings(self._state, self.settings, base)
        with progress("looking at the pictures") as show:
            examples, dreams = look_at(subject, captioned, self.settings, show)
        for problem in examples.problems:
            print(f"janusflow: left out {one_line(problem)}", file=sys.stderr)
        make_folder(self._folder)
        tuning = FineTune(subject, examples, self.settings, base, self._state, dreams)
        tuning.stage.memory[DTYPE] = dtype_name(pipe.dtype)
        try:
            with between_steps() as stopped, self._shown(tuning, pipe) as on_step:
                tuning.run(on_step, stopped=stopped)
        except Diverged as error:
            raise ValueError(f"{error} in {self.out}: lower --learning-rate, or look at the pictures") from error
        except BaseException:
            tuning.stage.save()
            raise
        finally:
            save_lora(self.out, tuning.result(), lora_metadata(tuning))
        print(self.out)
        return 0

    @property
    def _folder(self) -> Path:
        return self.out.with_name(f"{self.out.stem}_run")

    @property
    def _state(self) -> Path:
        return self._folder / "state.safetensors"

    def _check(self) -> None:
        if self.images is None:
            raise ValueError("got no pictures, name a folder with them: janusflow train lora --images FOLDER")
        if self.out.suffix != ".safetensors":
            raise ValueError(f"got --out {self.out}, expected a name that ends in .safetensors")
        if self.out.exists() and not self._state.exists():
            raise FileExistsError(f"{self.out} exists already, without a {self._folder.name} to go on from: rename it")

    def _load(self) -> JanusFlowPipeline:
        from ..device import best_device
        from ..pipeline import JanusFlowPipeline

        with self.loading() as place:
            device = place["device"] or best_device()
            dtype = place["dtype"] or torch_dtype(self._faster(device))
            place |= {"device": device, "dtype": dtype}
            pipe = JanusFlowPipeline.from_pretrained(self.model, vae=self.vae, **place)
        if pipe.codec is None:
            raise ValueError(f"{self.model} brings no VAE: name an SDXL VAE with --vae")
        return pipe

    def _faster(self, device: torch.device) -> str:
        """bf16 or fp32: what a stopped run computed in, or what is found to be faster, which another day may differ."""
        from ..train.loop import told_by
        from ..train.machine import trains_in_bf16

        _, memory = told_by(self._state)
        return memory.get(DTYPE) or ("bf16" if trains_in_bf16(device) else "fp32")

    @contextmanager
    def _shown(self, tuning: FineTune, pipe: JanusFlowPipeline) -> Iterator[OnStep]:
        """What hears of every step: a bar, the log, and samples."""
        settings, log = self.settings, self._folder / "log.jsonl"
        at_once = settings.batch * settings.accumulate
        with steps_shown(tuning.stage, settings.steps, at_once, "pictures", log) as (tell, write):

            def on_step(part: float, means: Mapping[str, float]) -> None:
                tell(means)
                if self.sample_every and tuning.stage.step % self.sample_every == 0:
                    write(json.dumps(self._sample(tuning, pipe), ensure_ascii=False))

            yield on_step

    def _sample(self, tuning: FineTune, pipe: JanusFlowPipeline) -> dict[str, Any]:
        """Draw the first texts side by side, or say what the first pictures show; returns what to log of it."""
        import torch

        from ..png import save_new

        texts, step = tuning.learnt.texts[:SHOWN], tuning.stage.step
        told: dict[str, Any] = {"step": step, "texts": texts}
        if self.settings.teach != "captioning":
            row = side_by_side(tuning.subject.draw(tuning.prompts[:SHOWN], pipe.drawing))
            told["picture"] = save_new(self._folder, f"step_{step:06d}", row, {}).name
        if self.settings.teach != "generation":
            subject, pictures = tuning.subject, torch.stack([both[0] for both in tuning.learnt.whole[:SHOWN]])
            told["answers"] = subject.answers(subject.see(pictures), len(pictures) * [self.settings.question])
        return told


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a model from nothing (tiny), a LoRA on captioned pictures (lora), or by a recipe: `janusflow train RECIPE`,
    a .yaml file or one of stage1, stage2, stage3."""

    recipe: tyro.conf.OmitArgPrefixes[
        tyro.conf.OmitSubcommandPrefixes[
            Annotated[Tiny, tyro.conf.subcommand("tiny")]
            | Annotated[Lora, tyro.conf.subcommand("lora")]
            | Annotated[ByRecipe, tyro.conf.subcommand("recipe")]
        ]
    ]

    def run(self) -> int:
        """Train; the status is the recipe's."""
        return self.recipe.run()


def subject_of(pipe: JanusFlowPipeline) -> Subject:
    """A pipeline as fine-tuning sees it; raises ValueError where it has no VAE."""
    from ..train.machine import training_attention
    from ..train.subject import Subject

    model, codec = pipe.model, pipe.need_codec()
    attention = training_attention(pipe.device)
    return Subject(model, model, pipe.tokenizer, pipe.image_config, codec.encode, codec.decode, attention)
