"""The paper's table 6 in miniature: what REPA, encoders of their own and both tasks together are worth, on a toy world.

    python tests/benchmarks/ablation.py                          six variants, three seeds each, two at once: 43 minutes
    python tests/benchmarks/ablation.py --only A F --seeds 1     two variants with one seed

The world is one thing in each picture: what color it is, what shape it has, and drawing it. VAE and understanding
encoder are those of janusflow-tiny and stay as they are; a small language model, the generation encoder and decoder
and all aligners begin anew with each seed. A variant of one task sees as many samples of it as the others do, in its
share of the steps. All is measured with the averaged weights, on fresh pictures of the same kinds of things. A run
whose figures lie in the folder --out is not repeated, and one that was stopped goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from janusflow_core.checkpoint import load_model, open_checkpoint  # noqa: E402
from janusflow_core.drawing import DrawingConfig  # noqa: E402
from janusflow_core.layout import describe_files, save_single, write_json  # noqa: E402
from janusflow_core.model import JanusFlow  # noqa: E402
from janusflow_core.partial import appearing  # noqa: E402
from janusflow_core.train.data import Sample, open_data  # noqa: E402
from janusflow_core.train.objective import Objective  # noqa: E402
from janusflow_core.train.packing import IGNORE, SEEN, Batch, in_bytes, pack  # noqa: E402
from janusflow_core.train.recipe import Alignment, DataSet, Recipe, Shares, parse_recipe  # noqa: E402
from janusflow_core.train.subject import Subject  # noqa: E402
from janusflow_core.train.trainer import Trainer  # noqa: E402
from janusflow_core.vae import LatentCodec  # noqa: E402
from janusflow_core.world import judge, scenes, talk  # noqa: E402

PICTURES, SHARES = {"learnt": 1600, "fresh": 128}, {"understanding": 1, "generation": 3}
SMALL = {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4, "num_attention_heads": 4}
RECIPE = """{
renew: [language, generation, aligners], train: [language, generation, aligners], mixture: [{understanding: 1}],
steps: 1200, batch: 16, at_once: 16, learning_rate: 2e-3, schedule: cosine, warmup: 50, average: 0.99,
length: 64, format: plain, precision: fp32, workers: 0, save_every: 200, keep: 1}"""
DRAWING, AT_ONCE = DrawingConfig(steps=15, guidance=2.0, solver="euler"), 32
TIMES = 4  # that a cost is measured of each sample, at other noise
NAMES = {"understanding": ("answers", "answer"), "generation": ("drawings", "flow")}  # what is right, and what costs
FIGURES = ("answers right, %", "answer loss", "drawings right, %", "flow loss")


@dataclass(frozen=True)
class Variant:
    """A row of the table; pictures are read through the `understanding` encoder, or one of latents."""

    told: str
    repa: bool = True
    reads: str = "understanding"
    tasks: Sequence[str] = ("understanding", "generation")


VARIANTS = {
    "A": Variant("no REPA; understanding encoder", repa=False),
    "B": Variant("REPA; one encoder of latents, shared by both tasks", reads="shared"),
    "C": Variant("REPA; an encoder of latents for each task", reads="separate"),
    "D": Variant("understanding alone", tasks=("understanding",)),
    "E": Variant("REPA; generation alone", tasks=("generation",)),
    "F": Variant("REPA; understanding encoder: JanusFlow"),
}


class Known(LatentCodec):
    """A codec that looks up the latents of pictures that were encoded beforehand."""

    def encode(self, pixels: Tensor) -> Tensor:
        pictures = (pixels * 255).round().byte().cpu()
        return torch.stack([self.latents[key_of(picture)] for picture in pictures]).to(self.device)


class OfLatents(Objective):
    """The objective where pictures are read as clean latents through an encoder of the kind that drawing has."""

    def __init__(self, made: Objective, codec: LatentCodec, eyes: JanusFlow) -> None:
        super().__init__(made.model, made.projector, made.layer, made.image)
        self.codec, self.encoder, self.aligner = codec, eyes.vision_gen_enc_model, eyes.vision_gen_enc_aligner

    def _embedded(self, batch: Batch) -> Tensor:
        embeddings = self.model.encode_prompt(batch.ids)
        if not len(batch.pictures):
            return embeddings
        latents = self.codec.encode(batch.pictures / 255)
        features, _ = self.encoder(latents, torch.full((len(latents),), 1000.0, device=latents.device))
        patches = self.aligner(features.flatten(2).transpose(1, 2))
        images = torch.cat((self.model.beg_of_und_embed.expand(len(latents), 1, -1), patches), dim=1)
        return embeddings.masked_scatter((batch.kinds == SEEN)[..., None], images.flatten(0, 1).to(embeddings))


class Ablation(Trainer):
    """The training of a variant that reads in one of the ways."""

    def __init__(self, recipe: Recipe, out: Path, reads: str) -> None:
        self.reads = reads
        super().__init__(recipe, out)

    def _codec(self) -> LatentCodec:
        codec = super()._codec()
        codec = Known(codec.autoencoder, codec.dtype, codec.device)
        codec.latents = load_file(Path(self.recipe.start).with_name("latents.safetensors"))
        return codec

    def _new_objective(self) -> Objective:
        made = super()._new_objective()
        if self.reads == "separate":
            eyes = JanusFlow(made.model.config)
            eyes.init_weights(torch.Generator().manual_seed(self.recipe.seed + 10**6))
            return OfLatents(made, self.codec, eyes)
        return OfLatents(made, self.codec, made.model) if self.reads == "shared" else made

    def parts(self, samples: Sequence[Sample]) -> Iterator[Batch]:
        """Samples to measure with, at noise and times that are the same in every run."""
        writer = replace(self.batches.stream.writer, drop=0.0)
        for first in range(0, len(samples), AT_ONCE):
            some = enumerate(samples[first : first + AT_ONCE], first)
            written = [writer(sample, random.Random(f"fresh/{number}")) for number, sample in some]
            yield pack(written, writer).to(self.team.device)


def key_of(picture: Tensor) -> str:
    """The name of a picture (3, S, S) in bytes."""
    return f"{zlib.crc32(picture.numpy().tobytes()):08x}"


def prepare(data: Path) -> None:
    """Render and encode all pictures and write the small model to begin with."""
    old = open_checkpoint("janusflow-tiny")
    codec = LatentCodec(old.read_vae())
    pictures = [in_bytes(picture) for name in PICTURES for picture in rendered(data, name)]
    latents = {key_of(picture): codec.encode(picture[None] / 255)[0] for picture in pictures}
    save_file(latents, data / "latents.safetensors")
    language = old.config.language.model_copy(update={**SMALL, "num_key_value_heads": 4})
    model = JanusFlow(old.config.model_copy(update={"language": language}))
    model.init_weights()
    model.vision_und_enc_model.load_state_dict(load_model(old).vision_und_enc_model.state_dict())
    told = describe_files(model.config, old.tokenizer, old.image), old.tokenizer.json, codec.autoencoder
    save_single(data / "start.safetensors", model.state_dict(), *told)


def rendered(data: Path, name: str) -> Iterator[Image.Image]:
    """The pictures of a part of the data, written beside two .jsonl, what is to be drawn and what is asked."""
    (data / name).mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[dict[str, str]]] = {"generation": [], "understanding": []}
    words = random.Random(f"ablation/{name}")
    for number, prompt in enumerate(talk.sample_prompts("color", PICTURES[name], words.getrandbits(32))):
        scene, file = talk.scene_for_prompt(prompt, words), f"{name}/{number}.png"
        place = {"x": words.uniform(40, 56), "y": words.uniform(40, 56), "radius": words.uniform(22, 28)}
        scene = replace(scene, objects=(replace(scene.objects[0], **place),))
        picture = Image.fromarray(scenes.render(scene))
        picture.save(data / file)
        rows["generation"].append({"image": file, "text": prompt})
        told = [asked for kind, *asked in talk.questions(scene, words) if kind in ("color", "shape")]
        rows["understanding"] += [{"image": file, "question": question, "answer": answer} for question, answer in told]
        yield picture
    for task, some in rows.items():
        (data / f"{name}_{task}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in some), "utf-8")


def run(name: str, seed: int, steps: int, file: Path) -> None:
    """Train a variant, measure it and write its figures to a file."""
    torch.set_num_threads(1)
    variant, data = VARIANTS[name], file.parent / "data"
    told = {
        "start": str(data / "start.safetensors"),
        "data": tuple(DataSet(path=str(data / f"learnt_{task}.jsonl")) for task in variant.tasks),
        "mixture": (Shares(**{task: SHARES[task] for task in variant.tasks}),),
        "steps": round(steps * sum(SHARES[task] for task in variant.tasks) / sum(SHARES.values())),
        "repa": Alignment(weight=float(variant.repa)),
        "seed": seed,
    }
    trainer = Ablation(parse_recipe(RECIPE, "RECIPE").model_copy(update=told), file.with_suffix(""), variant.reads)
    trainer.run()
    figures = {"variant": name, "seed": seed, **measured(trainer, variant, data)}
    with appearing(file) as new:
        write_json(new, figures)


@torch.no_grad()
def measured(trainer: Ablation, variant: Variant, data: Path) -> dict[str, float]:
    """The figures of a trained variant with its averaged weights."""
    for name, weight in trainer.stage.trained.items():
        weight.copy_(trainer.stage.average[name])
    trainer.objective.eval()
    figures = {}
    for task in variant.tasks:
        source = open_data(data / f"fresh_{task}.jsonl")
        samples = [source.sample(row, task) for row in range(len(source.tasks))]
        right = answered(trainer, samples) if task == "understanding" else drawn(trainer, samples)
        what, term = NAMES[task]
        costs = torch.cat([trainer._terms(part, [])[term] for part in trainer.parts(samples * TIMES)])
        figures |= {f"{what} right, %": 100 * right, f"{term} loss": costs.mean().item()}
    return figures


def answered(trainer: Ablation, samples: Sequence[Sample]) -> float:
    """The part of questions whose answer, said greedily, is exact: each of its tokens is the likeliest at its place."""
    objective, right = trainer.objective, 0
    for batch in trainer.parts(samples):
        likeliest = objective.model.logits(objective._read(objective._embedded(batch), batch)[0]).argmax(-1)
        wrong = (likeliest != batch.labels) & (batch.labels != IGNORE)
        right += len(batch.tasks) - len(batch.owners[wrong].unique())
    return right / len(samples)


def drawn(trainer: Ablation, samples: Sequence[Sample]) -> float:
    """The part of prompts whose drawing the judge finds right."""
    model, codec, ids = trainer.objective.model, trainer.codec, trainer.batches.stream.writer.prompt_ids
    subject = Subject(model, model, trainer.tokenizer, trainer.checkpoint.image, codec.encode, codec.decode)
    pictures = subject.draw([ids(sample.text) for sample in samples], DRAWING)
    return sum(map(judge.judge, pictures, [sample.text for sample in samples])) / len(samples)


def table(runs: Sequence[dict[str, Any]]) -> str:
    """The variants with the mean of each figure ± its standard deviation over the seeds, in Markdown."""
    rows = [f"| | variant | runs | {' | '.join(FIGURES)} |", f"{'|---' * (3 + len(FIGURES))}|"]
    for name, variant in VARIANTS.items():
        own = [told for told in runs if told["variant"] == name]
        columns = [[told[figure] for told in own if figure in told] for figure in FIGURES]
        cells = [" ± ".join(f"{part(some):.3g}" for part in (mean, stdev)[: len(some)]) or "–" for some in columns]
        rows += [f"| {name} | {variant.told} | {len(own)} | {' | '.join(cells)} |"] if own else []
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1200, help="of the variants of both tasks")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=[*VARIANTS])
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, each with one thread")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if not (given.out / "data/start.safetensors").exists():
        prepare(given.out / "data")
    runs = [(name, seed, given.steps) for seed in range(given.seeds) for name in given.only]
    ways = [(*told, given.out / f"{'_'.join(map(str, told))}.json") for told in runs]
    with get_context("spawn").Pool(given.jobs, maxtasksperchild=1) as pool:
        pool.starmap(run, [way for way in ways if not way[-1].exists()], chunksize=1)
    print(table([json.loads(file.read_text("utf-8")) for *_, file in ways]))


if __name__ == "__main__":
    main()
