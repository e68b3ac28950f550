"""Fine-tuning on ComfyUI's own MODEL, CLIP and VAE: what is learnt from, what learns, and how a run goes."""

from __future__ import annotations

import json
import logging
import re
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...janusflow_core.checkpoint import open_checkpoint
from ...janusflow_core.image import to_pil
from ...janusflow_core.lora import lora_tensors, save_lora
from ...janusflow_core.train.examples import Captioned, Examples, read_folder
from ...janusflow_core.train.finetune import Base, FineTune, about, check_settings, look_at, lora_metadata
from ...janusflow_core.train.loop import told_by
from ...janusflow_core.train.machine import training_attention
from ...janusflow_core.train.optimizer import Diverged
from ...janusflow_core.train.options import FineTuneOptions
from ...janusflow_core.train.subject import Subject
from .clip import JanusFlowCLIP
from .compat import check_cancelled, folder_paths, fresh_clone, model_management, show_on_node, utils
from .files import data_path

log = logging.getLogger(__name__)

NO_FOLDER = "none"
PREVIEW = 512  # longest side in pixels
DONE = "done"  # in the memory of a run that came to its end


@contextmanager
def learnable(model: Any, clip: JanusFlowCLIP, vae: Any) -> Iterator[Subject]:
    """The model as fine-tuning sees it, with the LoRAs that lie upon MODEL and CLIP as part of it.

    Nodes run in inference mode, whose tensors no gradient goes through, so the weights are read from the checkpoint
    anew; the quantised stay as they are. MODEL and CLIP themselves are not touched.
    """
    with torch.inference_mode(False), torch.enable_grad():
        flow = fresh_clone(model)
        text = fresh_clone(clip.patcher)
        text.load_device = flow.load_device  # the words' embeddings go where the layers are

        def load() -> None:
            model_management.load_models_gpu([flow, text], memory_required=1e20, force_full_load=True)

        @torch.no_grad()
        def encode(pixels: Tensor) -> Tensor:
            return flow.model.process_latent_in(vae.encode(pixels.movedim(1, -1)))

        @torch.no_grad()
        def decode(latents: Tensor) -> Tensor:
            pixels = vae.decode(flow.model.process_latent_out(latents.cpu())).movedim(-1, 1)
            load()  # the VAE may have taken their place
            return pixels

        before, model_management.in_training = model_management.in_training, True
        try:
            load()
            halves = flow.model.diffusion_model, text.model
            for half in halves:
                half.requires_grad_(False)
            text.model.set_clip_options({"execution_device": flow.load_device})
            tokenizer, dtype = clip.tokenizer, flow.model.get_dtype_inference()
            attention = training_attention(flow.load_device)
            yield Subject(*halves, tokenizer.core, tokenizer.image, encode, decode, attention, dtype)
        finally:
            model_management.in_training = before
            for patcher in (flow, text):
                patcher.detach()


def captioned_pictures(images: Sequence[Any] | None, texts: Sequence[str] | None, folder: str) -> list[Captioned]:
    """What the graph, or a folder of ComfyUI's, gives to learn from; raises ValueError with one sentence."""
    if folder != NO_FOLDER:
        if images:
            raise ValueError(f"There are both images and the folder {folder}: disconnect one, or choose {NO_FOLDER}.")
        return read_folder(data_path(folder))
    pictures = [picture for batch in images or () for picture in batch]
    if not pictures:
        raise ValueError("There are no pictures: connect images and texts, or choose a folder.")
    words = [" ".join(text.split()) for text in texts or ()]
    words = words * len(pictures) if len(words) == 1 else words
    if len(words) != len(pictures):
        raise ValueError(f"There are {len(pictures)} pictures and {len(words)} texts: give one text for each, or one.")
    for number, text in enumerate(words, 1):
        if not text:
            raise ValueError(f"Text {number} of {len(words)} is empty: write what picture {number} shows.")
    return [_of_tensor(f"picture {n}", *pair) for n, pair in enumerate(zip(words, pictures, strict=True), 1)]


def _of_tensor(name: str, text: str, picture: torch.Tensor) -> Captioned:
    return Captioned(name, text, lambda: to_pil(picture))


class Run:
    """One training run of the node: what it shows while it goes on, and what it leaves."""

    def __init__(
        self, model: Any, options: FineTuneOptions, name: str, resume: bool, preview_every: int, hidden: Any
    ) -> None:
        self.options, self.hidden, self.preview_every = options, hidden, preview_every
        self.drawing = model.model.model_config.drawing
        self.checkpoint = open_checkpoint(model.cached_patcher_init[1][0])
        self.folder, self.name = _run_folder(name)
        self.resume = resume

    @property
    def state(self) -> Path:
        return self.folder / f"{self.name}_run" / "state.safetensors"

    def _check(self, base: Base) -> None:
        """Refuse to go on with other settings before anything long begins."""
        _, memory = told_by(self.state)
        if self.resume and DONE not in memory:
            check_settings(self.state, self.options, base)

    def _new(self, subject: Subject, examples: Examples, base: Base, dreams: Examples) -> FineTune:
        """Gone on with where it was stopped; begun anew where one does not want that, or where nothing is lost."""
        if not self.resume or self._is_another_and_done(about(self.options, examples.texts, base)):
            self.state.unlink(missing_ok=True)
        return FineTune(subject, examples, self.options, base, self.state, dreams)

    def _is_another_and_done(self, now: str) -> bool:
        """Whether the state is of a run of other settings that came to its end."""
        before, memory = told_by(self.state)
        return DONE in memory and before != now

    def train(self, subject: Subject, captioned: Sequence[Captioned]) -> tuple[dict[str, Tensor], Any, int, str]:
        """The LoRA's tensors, its losses, the steps done, and a report; after a cancel what was trained is kept."""
        before = len(captioned) + self.options.dreams
        bar = utils.ProgressBar(before + self.options.steps)

        def looked(done: int, total: int) -> None:
            check_cancelled()
            bar.update_absolute(done)

        base = Base.of(self.checkpoint)
        self._check(base)
        examples, dreams = look_at(subject, captioned, self.options, looked)
        tuning = self._new(subject, examples, base, dreams)
        losses = tuning.stage.memory.setdefault("losses", [])
        began, first, step_ends = time.monotonic(), tuning.stage.step, deque([time.monotonic()], maxlen=21)

        def learned(part: float, means: Mapping[str, float]) -> None:
            losses.append(round(sum(means[name] for name in ("flow", "answer") if name in means), 6))
            step = tuning.stage.step
            step_ends.append(time.monotonic())
            self._tell(step, means, (len(step_ends) - 1) / (step_ends[-1] - step_ends[0]))
            shown = self.preview_every and step % self.preview_every == 0
            bar.update_absolute(before + step, preview=self._preview(tuning) if shown else None)
            check_cancelled()

        how = "finished"
        try:
            tuning.run(learned)
        except Diverged as error:
            how = f"{error}: lower the learning rate"
        except BaseException:  # a cancel is none of Python's errors
            self._keep(tuning)
            raise
        tuning.stage.memory[DONE] = True
        tuning.stage.save()
        seconds = time.monotonic() - began
        report = _report(self.options, examples, how, first, tuning.stage.step, seconds, losses)
        return lora_tensors(tuning.result()), {"loss": losses}, tuning.stage.step, report

    def _preview(self, tuning: FineTune) -> tuple[str, Any, int]:
        """A picture of the first text, as ComfyUI shows it while a node runs."""
        (picture,) = tuning.subject.draw(tuning.prompts[:1], self.drawing, self.options.seed)
        return "JPEG", picture, PREVIEW

    def _tell(self, step: int, means: Mapping[str, float], rate: float) -> None:
        losses = ", ".join(f"{name} {mean:.3f}" for name, mean in means.items())
        pictures, left = rate * self.options.batch * self.options.accumulate, (self.options.steps - step) / rate
        told = f"step {step} of {self.options.steps}: {losses}; {pictures:.1f} pictures/s, {left:.0f} s left"
        show_on_node(told, self.hidden)

    def _keep(self, tuning: FineTune) -> None:
        """After a cancel: the state to go on from, and the LoRA as it is, under a name that is told."""
        step = tuning.stage.step
        if not step:
            return
        tuning.stage.save()
        path = self.folder / f"{self.name}_{step}_steps.safetensors"
        save_lora(path, tuning.result(), {**lora_metadata(tuning), **_workflow(self.hidden)})
        told = f"Stopped at step {step}: the LoRA so far is {path.name} in output/loras; run again to go on."
        log.info(told)
        show_on_node(told, self.hidden)


def _run_folder(name: str) -> tuple[Path, str]:
    """Where a run's files lie, below ComfyUI's output, and how their names begin."""
    if not re.fullmatch(r"[\w -]+", name):
        raise ValueError(f"The name {name!r} is no file's name: use letters, digits, spaces, - and _.")
    return Path(folder_paths.get_output_directory()) / "loras", name


def _workflow(hidden: Any) -> dict[str, str]:
    """The graph, as ComfyUI's own files carry it."""
    extra = getattr(hidden, "extra_pnginfo", None) or {}
    return {name: json.dumps(value) for name, value in extra.items()}


def _report(
    options: FineTuneOptions,
    examples: Examples,
    how: str,
    first: int,
    last: int,
    seconds: float,
    losses: Sequence[float],
) -> str:
    """What a run learnt from and how it went, in a few lines."""
    lines = [f"{how}: steps {first} to {last} of {options.steps} in {seconds:.0f} s, {len(examples.texts)} pictures"]
    if losses:
        tenth = max(len(losses) // 10, 1)
        begin, end = (sum(part) / len(part) for part in (losses[:tenth], losses[-tenth:]))
        lines.append(f"loss {begin:.3f} at first, {end:.3f} at last")
    return "\n".join([*lines, *(f"left out {problem}" for problem in examples.problems)])
