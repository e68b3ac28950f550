"""The packed step against the same samples one by one, its gradients against finite differences, and no leaks."""

import random
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from golden import MODULE, assert_close, micro, micro_pipeline
from PIL import Image

from janusflow_core.llama import hidden_after
from janusflow_core.model import Prefix
from janusflow_core.sampling import interpolate
from janusflow_core.train.data import Sample
from janusflow_core.train.losses import IGNORE, autoregressive_loss, flow_loss
from janusflow_core.train.objective import Objective, normalised
from janusflow_core.train.packing import Batch, Writer, Written, pack
from janusflow_core.train.terms import new_projector

LATENT = (4, 4, 4)
TURNS = (("What color?", "red"), ("How many?", "two of them"))
PROMPTS = ("a red circle", "two", "a blue square left of a star")


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 48, 3), dtype=np.uint8))


def samples(format="chat") -> list[Sample]:
    drawn = [Sample(f"drawn {n}", "generation", text, (), lambda n=n: picture(n)) for n, text in enumerate(PROMPTS)]
    read = [
        Sample("captioned", "understanding", "a red circle", (), lambda: picture(7)),
        Sample("asked", "understanding", turns=TURNS, open=lambda: picture(8)),
    ]
    return [drawn[0], read[0], Sample("told", "text", "once upon a time"), drawn[1], read[1], drawn[2]]


def writer(**told) -> Writer:
    pipe = micro()
    return Writer(pipe.tokenizer, pipe.image_config, LATENT, **{"tokens": 5, "length": 400, **told})


def write(one: Sample, seed: int, drop: float = 0.3) -> Written:
    return writer(drop=drop)(one, random.Random(seed))


def packed(written: list[Written], length: int = 300) -> Batch:
    return pack(written, writer(length=length))


def latents(batch: Batch) -> torch.Tensor:
    """Made of the crops alone, so that each picture keeps its own."""
    return normalised(batch.crops, micro().image_config)[:, [0, 1, 2, 0], ::8, ::8]


def new_objective(dtype: torch.dtype = torch.float32) -> Objective:
    torch.manual_seed(0)
    model = micro_pipeline().model.to(dtype).requires_grad_(True)
    return Objective(model, new_projector(model.config).to(dtype), 1, micro().image_config)


def by_sample(terms: dict[str, torch.Tensor], batch: Batch) -> dict[tuple[int, str], torch.Tensor]:
    """Each cost by the number of its sample in the rows."""
    task_of = {"flow": "generation", "repa": "generation", "answer": "understanding", "text": "text"}
    found = {}
    for name, costs in terms.items():
        numbers = [number for number, task in enumerate(batch.tasks) if task == task_of[name]]
        found |= {(number, name): cost for number, cost in zip(numbers, costs, strict=True)}
    return found


@pytest.mark.parametrize("length", [120, 300])
def test_a_sample_costs_in_a_row_what_it_costs_alone(length: int):
    objective, written = new_objective(), [write(one, seed) for seed, one in enumerate(samples())]
    batch = packed(written, length)
    assert batch.ids.shape[0] < len(written)  # some share a row
    together = by_sample(objective(batch, latents(batch)), batch)
    assert len(together) == 3 + 3 + 2 + 1
    for number in range(len(written)):
        own = int((batch.owners == number).sum())
        row, at = (batch.owners == number).nonzero(as_tuple=True)
        one = next(w for w in written if w.ids == batch.ids[row, at].tolist() and len(w.ids) == own)
        single = packed([one])
        for (_, name), cost in by_sample(objective(single, latents(single)), single).items():
            assert_close(together[number, name], cost, MODULE)


def test_what_is_drawn_costs_what_inference_says():
    """Noise, time and prompt by hand, and the velocity as sampling asks for it."""
    objective = new_objective()
    one = write(samples()[0], 0, drop=0.0)
    batch = packed([one])
    x, model, pipe = latents(batch), objective.model, micro()
    assert one.noise is not None
    ids = pipe.tokenizer.generation_ids(PROMPTS[0])
    prefix = Prefix.join([model.encode_prompt(torch.tensor(ids))], [len(ids)])
    z = interpolate(x, one.noise[None], one.t)
    with hidden_after(model.language_model.model, 1) as watched:
        v = model.velocity(z, torch.tensor([one.t]), prefix)
    found = objective(batch, x)
    assert_close(found["flow"], flow_loss(v, x, one.noise[None]), MODULE)
    seen = model.image_features(normalised(batch.crops, pipe.image_config))
    aligned = objective.projector(watched[-1][:, -4:])  # type: ignore[misc]
    cosine = torch.nn.functional.cosine_similarity(aligned, seen, dim=-1).mean(dim=1)
    assert_close(found["repa"], -cosine, MODULE)


def test_what_is_read_costs_what_inference_says():
    objective, pipe = new_objective(), micro()
    batch = packed([write(samples()[4], 0)])
    model, ids = objective.model, batch.ids
    features = model.image_features(normalised(batch.pictures, pipe.image_config))
    embeddings = model.embed_conversation(ids, pipe.tokenizer.image_mask(ids), features)
    mask = torch.ones(1, 1, ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
    hidden = model.language_model.model(embeddings, torch.arange(ids.shape[1])[None], mask)
    expected = autoregressive_loss(model.logits(hidden), batch.labels)
    assert_close(objective(batch, latents(batch))["answer"], expected, MODULE)


@pytest.mark.parametrize("changed", range(6))
def test_no_sample_sees_another(changed: int):
    """Bit for bit: whatever stands in one sample, the others cost the same."""
    objective, written = new_objective(), [write(one, seed) for seed, one in enumerate(samples())]
    batch = packed(written)
    before = by_sample(objective(batch, latents(batch)), batch)
    mark = batch.owners == changed
    other = replace(batch, ids=torch.where(mark & (batch.kinds == 0), (batch.ids + 7) % 200, batch.ids))
    other = replace(other, labels=torch.where(mark & (batch.labels != IGNORE), (batch.labels + 7) % 200, batch.labels))
    place = batch.tasks[: changed + 1].count(batch.tasks[changed]) - 1
    if batch.tasks[changed] != "text":
        part = "crops" if batch.tasks[changed] == "generation" else "pictures"
        pictures = getattr(other, part).clone()
        pictures[place] = 255 - pictures[place]
        other = replace(other, **{part: pictures})
    after = by_sample(objective(other, latents(other)), other)
    for (number, name), cost in after.items():
        assert torch.equal(cost, before[number, name]) != (number == changed), (number, name)


def test_padding_costs_nothing():
    objective, written = new_objective(), [write(one, seed) for seed, one in enumerate(samples())]
    batch = packed(written, 120)
    assert (batch.owners == -1).any()
    other = replace(batch, ids=torch.where(batch.owners == -1, 3, batch.ids))
    one, two = (objective(each, latents(each)) for each in (batch, other))
    assert all(torch.equal(one[name], two[name]) for name in one)


TERMS = ("flow", "repa", "answer", "text")


@pytest.mark.parametrize("name", TERMS)
def test_gradients_are_those_of_finite_differences(name: str):
    """In float64, along a random direction of all weights that the term has a gradient for."""
    objective, written = new_objective(torch.float64), [write(one, seed) for seed, one in enumerate(samples())]
    batch = packed(written)
    batch = replace(batch, noise=batch.noise.double(), t=batch.t.double())
    x = latents(batch).double()
    objective(batch, x)[name].sum().backward()
    learning = [weight for weight in objective.parameters() if weight.grad is not None and weight.grad.abs().sum() > 0]
    assert len(learning) > 10
    torch.manual_seed(1)
    ways = [torch.randn_like(weight) for weight in learning]
    slope = sum(float((weight.grad * way).sum()) for weight, way in zip(learning, ways, strict=True))  # type: ignore[operator]
    step, costs = 1e-6, []
    for sign in (1, -1):
        moved = deepcopy(objective)
        where = {id(w): m for w, m in zip(objective.parameters(), moved.parameters(), strict=True)}
        with torch.no_grad():
            for weight, way in zip(learning, ways, strict=True):
                where[id(weight)].add_(way, alpha=sign * step)
            costs.append(float(moved(batch, x)[name].sum()))
    assert (costs[0] - costs[1]) / (2 * step) == pytest.approx(slope, rel=1e-5)


def test_the_encoder_learns_from_reading_and_never_from_alignment():
    objective = new_objective()
    drawn = packed([write(samples()[0], 0)])
    sum(term.sum() for term in objective(drawn, latents(drawn)).values()).backward()
    encoder = objective.model.vision_und_enc_model
    assert not any(weight.grad.abs().any() for weight in encoder.parameters())  # type: ignore[union-attr]
    read = packed([write(samples()[1], 0)])
    objective(read, latents(read))["answer"].sum().backward()
    assert all(weight.grad.abs().any() for weight in encoder.parameters())  # type: ignore[union-attr]
    assert objective.model.beg_of_und_embed.grad is not None  # the authors' own code detaches it


def test_without_a_projector_nothing_is_aligned():
    objective = new_objective()
    objective.projector = None
    batch = packed([write(samples()[0], 0)])
    assert "repa" not in objective(batch, latents(batch))


@pytest.mark.parametrize("number", range(3))
def test_a_batch_of_one_kind_gives_every_weight_a_gradient(number: int):
    """So that several processes have the same to tell one another."""
    objective, batch = new_objective(), packed([write(samples()[number], 0)])
    terms = objective(batch, latents(batch))
    torch.cat([*terms.values()]).sum().backward()
    assert sum(len(term) for term in terms.values()) == (2 if number == 0 else 1)
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in objective.parameters())
