"""The terms of a step against the same sums written out: noise, time and velocity by hand, questions one by one."""

import pytest
import torch
import torch.nn.functional as F
from golden import MODULE, assert_close, micro, recipe
from torch import nn

from janusflow_core.attention import eager, prefix_mask, sdpa
from janusflow_core.device import has_compiler
from janusflow_core.llama import hidden_after
from janusflow_core.model import Prefix
from janusflow_core.train.conversations import conversation, pack
from janusflow_core.train.machine import Machine
from janusflow_core.train.terms import Terms, new_projector

ASKED = [("What color is the circle?", "red"), ("How many objects are there?", "two of them")]
LENGTH = 200  # more than the rows need


def prompts() -> Prefix:
    pipe = micro()
    rows = [
        pipe.model.encode_prompt(torch.tensor(pipe.tokenizer.generation_ids(text))) for text in ("a red circle", "two")
    ]
    return Prefix.join([rows[0], rows[1][:1]], [len(row) for row in rows])


@pytest.mark.parametrize("time_mean", [0.0, -0.8])
def test_generation_terms_are_the_papers_sums(time_mean: float):
    model, layer = micro().model, 1
    x = recipe("x", (2, 4, 4, 6), 0)
    noise, t = torch.randn(x.shape, generator=torch.Generator().manual_seed(5)), torch.Generator().manual_seed(5)
    torch.randn(x.shape, generator=t)
    t = (torch.randn(2, generator=t) + time_mean).sigmoid()
    z = torch.stack([t[row] * x[row] + (1 - t[row]) * noise[row] for row in range(2)])
    with hidden_after(model.language_model.model, layer) as hidden:
        v = model.velocity(z, t, prompts())
    features = hidden[0][:, -6:].detach()
    with Terms(model, model, nn.Identity(), layer, time_mean=time_mean) as terms:
        found = terms.generation(prompts(), x, features, torch.Generator().manual_seed(5))
    expected = torch.stack([(v[row] - (x[row] - noise[row])).pow(2).mean() for row in range(2)])
    assert_close(found["flow"], expected, MODULE)
    assert_close(found["repa"], torch.tensor([-1.0, -1.0]), MODULE)  # they are aligned with themselves


def test_generation_terms_train_projector_and_flow():
    model = micro().model
    projector = new_projector(model.config)
    features = recipe("features", (2, 6, model.config.vision.width), 0)
    weight = model.vision_gen_dec_aligner.weight.requires_grad_()
    x, generator = recipe("x", (2, 4, 4, 6), 0), torch.Generator().manual_seed(0)
    with Terms(model, model, projector, layer=1) as terms:
        found = terms.generation(prompts(), x, features, generator)
    torch.stack([term.mean() for term in found.values()]).sum().backward()
    assert not any(part._forward_hooks for part in model.language_model.model.layers)
    assert weight.grad.abs().sum() > 0 and projector[0].weight.grad.abs().sum() > 0
    weight.requires_grad_(False).grad = None


def surprise_alone(question: str, answer: str, features: torch.Tensor) -> tuple[torch.Tensor, int]:
    """The summed cross-entropy of one answer and its end, asked in a row of its own, and its number of tokens."""
    pipe, tokenizer = micro(), micro().tokenizer
    asked = tokenizer.understanding_ids(tokenizer.question_messages(question, 1), 1)
    reply = [*tokenizer.encode(" " + answer, bos=False), tokenizer.eos_id]
    ids = torch.tensor([asked + reply])
    embeddings = pipe.model.embed_conversation(ids, tokenizer.image_mask(ids), features)
    length = ids.shape[1]
    mask = prefix_mask([length], length, length, 0, ids.device)
    hidden = pipe.model.language_model.model(embeddings, torch.arange(length)[None], mask)
    logits = pipe.model.logits(hidden)[0, len(asked) - 1 : -1]
    return F.cross_entropy(logits, torch.tensor(reply), reduction="sum"), len(reply)


def test_questions_in_one_row_cost_what_they_cost_alone():
    model, tokenizer = micro().model, micro().tokenizer
    features = model.image_features(recipe("pictures", (2, 3, 32, 32), 0))
    packed = pack([conversation(tokenizer, ASKED), conversation(tokenizer, ASKED[1:])], tokenizer, length=LENGTH)
    assert packed.ids.shape == (2, LENGTH)
    for attention in (eager, sdpa):
        with Terms(model, model, nn.Identity(), 1, attention) as terms:
            found = terms.understanding(packed, features)
        alone = [surprise_alone(*asked, features[:1]) for asked in ASKED]
        expected = [sum(loss for loss, _ in alone) / sum(tokens for _, tokens in alone)]
        loss, tokens = surprise_alone(*ASKED[1], features[1:])
        assert_close(found["answer"], torch.stack([*expected, loss / tokens]), MODULE)


@pytest.mark.skipif(not has_compiler(), reason="torch.compile needs a C++ compiler")
def test_compiled_terms_are_the_same_step_after_step():
    model, x = micro().model, recipe("x", (2, 4, 4, 4), 0)
    tokenizer, projector = micro().tokenizer, new_projector(model.config)
    features, machine = recipe("features", (2, 4, 16), 0), Machine(torch.device("cpu"), bf16=False, compiles=True)
    packed = pack([conversation(tokenizer, ASKED), conversation(tokenizer, ASKED[1:])], tokenizer)

    def two_steps(compiled):
        with Terms(model, model, projector, 1, eager, compiled) as terms:
            for step in range(2):  # the second with other values at the same shapes
                generator = torch.Generator().manual_seed(step)
                yield terms.generation(prompts(), x, features, generator) | terms.understanding(packed, features)

    for fast, plain in zip(two_steps(machine.compiled), two_steps(lambda function: function), strict=True):
        for name in plain:
            assert_close(fast[name].detach(), plain[name].detach(), MODULE)
