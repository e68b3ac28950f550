"""Fine-tuning on a model of a few thousand weights: what a step costs, that it learns, stops, goes on and lets go."""

import json
import random
from pathlib import Path

import pytest
import torch
from golden import assert_close, micro_pipeline, new_subject, recipe
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from janusflow_core.lora import LoraStack, save_lora
from janusflow_core.model import Prefix
from janusflow_core.sampling import interpolate
from janusflow_core.train.conversations import conversation, pack
from janusflow_core.train.examples import Examples, batch_rows, shaken
from janusflow_core.train.finetune import Base, FineTune, thinned
from janusflow_core.train.loop import streams
from janusflow_core.train.optimizer import Diverged
from janusflow_core.train.options import FineTuneOptions
from janusflow_core.train.terms import Terms

BASE = Base("micro", "0" * 64)
TEXTS = ["a red circle", "two", "a heart", "a blue square left of a star"]


def examples(count: int = 4, seed: int = 0) -> Examples:
    """Random pictures with captions."""
    latents, aligned, whole = (recipe(name, (count, *shape), seed) for name, shape in SHAPES.items())
    asked = [[("Describe the image.", text)] for text in TEXTS[:count]]
    return Examples(TEXTS[:count], list(latents), list(aligned), list(whole.half()), asked)


SHAPES = {"latents": (4, 4, 4), "aligned": (4, 16), "whole": (2, 3, 32, 32)}


def terms_of(tuning: FineTune) -> Terms:
    return Terms(tuning.subject.flow, tuning.subject.text, tuning.projector, 1)


def new(folder: Path, dreams: Examples | None = None, pipe=None, **options) -> FineTune:
    folder.mkdir(exist_ok=True)
    pipe = pipe or micro_pipeline()
    chosen = FineTuneOptions(**{"steps": 6, "batch": 2, "rank": 2, "warmup": 1, **options})
    state = folder / "state.safetensors"
    return FineTune(new_subject(pipe), examples(), chosen, BASE, state, dreams)


def test_a_drawing_step_is_the_papers_sum_with_dropped_prompts(tmp_path):
    """Every prompt dropped: BOS alone, the time token where the whole prompt would have had it."""
    tuning = new(tmp_path, drop=1.0, seed=3)
    pipe, own = micro_pipeline(), examples()
    with tuning.adapters, terms_of(tuning) as terms:
        found = tuning._terms(terms, 5)
    assert found.keys() == {"flow"}
    rows = batch_rows(5, 2, 4, 3)
    _, generator = streams(3, 5)
    x = torch.stack([own.latents[row] for row in rows])
    noise = torch.randn(x.shape, generator=generator)
    t = torch.randn(2, generator=generator).sigmoid()
    for at, row in enumerate(rows):
        ids = pipe.tokenizer.generation_ids(TEXTS[row])
        prefix = Prefix.join([pipe.model.encode_prompt(torch.tensor(ids[:1]))], [len(ids)])
        z = interpolate(x[at], noise[at], t[at].item())
        v = pipe.model.velocity(z[None], t[at : at + 1], prefix)[0]
        assert_close(found["flow"][at], (v - (x[at] - noise[at])).square().mean(), 1e-5)


def test_with_dreams_only_their_prompts_are_dropped(tmp_path):
    """By hand: the new pictures with their prompts against x - z0, the dreams behind BOS against the plain model."""
    own, dreams = examples(), examples(3, seed=1)
    dreams.texts = ["two", "heart", "red"]  # of one word, so that none is left out
    tuning = new(tmp_path, drop=1.0, seed=3, dreams=dreams)
    for name, weight in tuning.adapters.named_parameters():
        weight.data += 0.2 * recipe(name, weight.shape, 0)
    with tuning.adapters, terms_of(tuning) as terms:
        found = tuning._terms(terms, 5)
    pipe, (_, generator) = micro_pipeline(), streams(3, 5)
    rows = [(own, row) for row in batch_rows(5, 2, 4, 3)] + [(dreams, row) for row in batch_rows(5, 2, 3, 3)]
    x = torch.stack([held.latents[row] for held, row in rows])
    noise = torch.randn(x.shape, generator=generator)
    times = (torch.randn(len(x), generator=generator) + torch.tensor([0.0, 0.0, -1.0, -1.0])).sigmoid()
    for at, (held, row) in enumerate(rows):
        ids = pipe.tokenizer.generation_ids(held.texts[row])
        told = pipe.model.encode_prompt(torch.tensor(ids if held is own else ids[:1]))
        prefix = Prefix.join([told], [len(ids)])
        z, t = interpolate(x[at], noise[at], times[at].item()), times[at : at + 1]
        plain = pipe.model.velocity(z[None], t, prefix)[0]
        with tuning.adapters:
            v = tuning.subject.flow.velocity(z[None], t, prefix)[0]
        if held is own:
            assert_close(found["flow"][at], (v - (x[at] - noise[at])).square().mean(), 1e-5)
        else:
            assert_close(found["kept"][at - 2], (v - plain).square().mean(), 1e-4)


@given(text=st.text("ab \n"), seed=st.integers(0, 999))
def test_a_thinned_text_keeps_some_words_in_their_order(text, seed):
    left, rest = thinned(text, random.Random(seed)).split(), iter(text.split())
    assert all(word in rest for word in left) and bool(left) == bool(text.split())


def test_a_captioning_step_costs_the_answers_tokens_about_shaken_pictures(tmp_path):
    tuning = new(tmp_path, teach="captioning")
    with tuning.adapters, terms_of(tuning) as terms:
        found = tuning._terms(terms, 5)
        own, rows = examples(), batch_rows(5, 2, 4, 0)
        asked = [conversation(tuning.tokenizer, [("Describe the image.", TEXTS[row])]) for row in rows]
        words, _ = streams(0, 5)
        some = torch.stack([words.choice(own.whole[row]) for row in rows])
        expected = terms.understanding(pack(asked, tuning.tokenizer), tuning.subject.see(shaken(some.float(), words)))
    assert found.keys() == {"answer"}
    assert_close(found["answer"], expected["answer"], 1e-6)


def test_what_is_kept_of_answers_is_how_the_plain_model_answered(tmp_path):
    """By hand, a question at a time: the mean over all answers' tokens of KL(plain, now)."""
    dreams = examples(3, seed=1)
    dreams.asked = [[("Describe the image.", text), ("How many?", "two hearts")] for text in dreams.texts]
    tuning = new(tmp_path, teach="captioning", dreams=dreams)
    with tuning.adapters, terms_of(tuning) as terms:
        assert tuning._terms(terms, 5)["kept"].abs().max() < 1e-6
        for name, weight in tuning.adapters.named_parameters():
            weight.data += 0.2 * recipe(name, weight.shape, 0)
        found = tuning._terms(terms, 5)["kept"]
        words, _ = streams(0, 5)
        tuning._asked(tuning.learnt, 5, words)
        _, pictures = tuning._asked(tuning.dreamt, 5, words)
        for at, row in enumerate(batch_rows(5, 2, 3, 0)):
            costs = torch.cat([costs_of(tuning, pictures[at], *asked) for asked in dreams.asked[row]])
            assert found[at] > 1e-4
            assert_close(found[at], costs.mean(), 1e-4)
    found.mean().backward()
    assert all(weight.grad is not None for _, weight in tuning.adapters.named_parameters())


def test_a_dream_is_always_asked_to_be_described_and_one_question_more(tmp_path):
    dreams, more = examples(3, seed=1), [(f"Is it {word}?", "two") for word in ("red", "blue", "a heart", "a star")]
    dreams.asked = [[("Describe the image.", text), *more] for text in dreams.texts]
    tuning = new(tmp_path, teach="captioning", dreams=dreams)
    words, others = random.Random(0), set()
    for number in range(12):
        asked, _ = tuning._asked(dreams, number, words)
        for at, row in enumerate(batch_rows(number, 2, 3, 0)):
            first = conversation(tuning.tokenizer, dreams.asked[row][:1])
            known = first.start + first.segments[0]
            assert asked.ids[at, : len(known)].tolist() == known and asked.segments[at].max() == 2
            others.add(tuple(asked.ids[at][asked.segments[at] == 2].tolist()))
    assert others == {tuple(conversation(tuning.tokenizer, [one]).segments[0]) for one in more}


def costs_of(tuning: FineTune, picture: torch.Tensor, question: str, answer: str) -> torch.Tensor:
    """KL(plain, now) of each token of one answer, and of the end behind it."""
    tokenizer, subject = tuning.tokenizer, tuning.subject
    asked = tokenizer.understanding_ids(tokenizer.question_messages(question, 1), 1)
    said = [*tokenizer.encode(" " + answer, bos=False), tokenizer.eos_id]
    ids = torch.tensor([asked + said])
    rows = subject.conversation(ids, tokenizer.image_mask(ids), subject.see(picture[None]))

    places, causal = torch.arange(len(ids[0])), torch.ones(len(ids[0]), len(ids[0])).tril().bool()

    def spoken() -> torch.Tensor:
        hidden = subject.flow.language_model.model(rows, places[None], causal[None, None])[0, len(asked) - 1 : -1]
        return subject.text.logits(hidden).softmax(dim=-1)

    now = spoken()
    with tuning.adapters.paused():
        then = spoken()
    return (then * (then / now).log()).sum(dim=-1)


@given(count=st.integers(1, 4), seed=st.integers(0, 999))
def test_a_shaken_picture_shows_the_same_a_little_moved(count, seed):
    """A blob's middle moves by at most 15 % of a side plus what scaling adds, and no color is made up."""
    size = 48
    place = torch.linspace(-1, 1, size)
    blob = (place[:, None].square() + place[None].square() < 0.16).float().expand(count, 3, -1, -1)
    moved = shaken(blob, random.Random(seed))
    assert moved.shape == blob.shape and 0.0 <= moved.min() and moved.max() <= 1.0
    weight = moved[:, 0] / moved[:, 0].sum(dim=(1, 2), keepdim=True)
    for axis in (weight.sum(1), weight.sum(2)):
        assert ((axis * place).sum(dim=1).abs() < 0.15 / 0.85 + 0.02).all()
    assert ((moved[:, 0].mean(dim=(1, 2)) / blob[:, 0].mean(dim=(1, 2))).sqrt().sub(1).abs() < 0.2).all()
    assert count == 1 or not torch.equal(moved[0], moved[1])


def test_what_is_kept_is_how_the_plain_model_drew(tmp_path):
    dreams = examples(3, seed=1)
    tuning = new(tmp_path, dreams=dreams)
    with tuning.adapters, terms_of(tuning) as terms:
        before = tuning._terms(terms, 0)["kept"]
        for name, weight in tuning.adapters.named_parameters():
            weight.data += 0.2 * recipe(name, weight.shape, 0)
        after = tuning._terms(terms, 0)["kept"]
    assert before.abs().max() < 1e-10 and after.min() > 1e-4
    after.mean().backward()
    assert all(weight.grad is not None for _, weight in tuning.adapters.named_parameters())


@pytest.mark.parametrize("teach", ["generation", "captioning", "both"])
@pytest.mark.parametrize("options", [{}, {"kind": "dora", "accumulate": 2}, {"parts": ("mlp", "generation", "head")}])
def test_it_learns_and_leaves_the_model_as_it_was(teach, options, tmp_path):
    tuning = new(tmp_path, teach=teach, ratio=0.5, steps=60, learning_rate=0.02, **options)
    plain, told = {name: w.clone() for name, w in tuning.subject.flow.named_parameters()}, []
    tuning.run(lambda progress, means: told.append(means))
    for name in {"generation": ["flow"], "captioning": ["answer"], "both": ["flow", "answer"]}[teach]:
        costs = [means[name] for means in told if name in means]
        assert sum(costs[-10:]) < 0.9 * sum(costs[:10]), (name, costs)
    assert all(torch.equal(weight, plain[name]) for name, weight in tuning.subject.flow.named_parameters())
    assert not any(layer._forward_hooks for layer in tuning.subject.flow.modules())
    save_lora(tmp_path / "lora.safetensors", tuning.result(), {})
    assert LoraStack(tuning.subject.flow).add(tmp_path / "lora.safetensors") == len(tuning.adapters.changes)


@pytest.mark.parametrize("options", [{}, {"teach": "both", "kind": "dora", "repa": 0.5, "accumulate": 2}])
def test_stopped_and_gone_on_equals_never_stopped(options, tmp_path):
    whole = new(tmp_path / "whole", **options)
    whole.run()

    def stop(progress, means):
        if progress >= 0.5:
            raise KeyboardInterrupt

    first = new(tmp_path / "parts", **options)
    with pytest.raises(KeyboardInterrupt):
        first.run(stop)
    first.stage.save()
    second = new(tmp_path / "parts", **options)
    assert second.stage.step == 3
    second.run()
    for name, adapter in second.result().items():
        other = whole.result()[name]
        assert torch.equal(adapter.up, other.up) and torch.equal(adapter.down, other.down), name


def test_a_state_of_other_settings_is_refused(tmp_path):
    new(tmp_path).run()
    with pytest.raises(ValueError, match="run of other settings"):
        new(tmp_path, rank=4)
    longer = new(tmp_path, steps=8)  # more of the same is no other setting
    longer.run()
    assert longer.stage.step == 8


@pytest.mark.parametrize(
    ("base", "count", "told"),
    [
        (Base("micro", "1" * 64), 4, r"\(model micro \(00000000\), now micro \(11111111\)\)"),
        (BASE, 3, r"\(captions 4 \(\w{8}\), now 3 \(\w{8}\)\)"),
    ],
)
def test_a_state_of_another_model_or_of_other_captions_is_refused(tmp_path, base, count, told):
    tuning = new(tmp_path)
    tuning.run()
    with pytest.raises(ValueError, match=told):
        FineTune(new_subject(micro_pipeline()), examples(count), tuning.options, base, tuning.stage.file)


def test_a_lost_loss_ends_in_a_sentence_and_the_last_good_weights(tmp_path):
    tuning = new(tmp_path, steps=80)

    def spoil(progress, means):
        if tuning.stage.step == 60:
            tuning.learnt.latents[0] = torch.full((4, 4, 4), torch.nan)

    with pytest.raises(Diverged, match=r"diverged at step 6\d \(flow is nan\); the weights of step 50 are kept"):
        tuning.run(spoil)
    assert all(torch.isfinite(adapter.up).all() for adapter in tuning.result().values())


def test_an_exploding_loss_is_noticed(tmp_path):
    tuning = new(tmp_path, steps=80)

    def spoil(progress, means):
        if tuning.stage.step == 20:
            tuning.learnt.latents = [1e3 * latent for latent in tuning.learnt.latents]

    with pytest.raises(Diverged, match=r"went up to .* the weights of step 0 are kept"):
        tuning.run(spoil)
    assert all(adapter.up.abs().sum() == 0 for adapter in tuning.result().values())


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.9])
def test_both_are_taught_in_the_ratio_asked_for(ratio, tmp_path):
    tuning = new(tmp_path, teach="both", ratio=ratio)
    drawn = [tuning.draws(number) for number in range(40)]
    assert sum(drawn) == 40 * ratio and sum(drawn[:20]) == 20 * ratio


def test_alignment_ends_at_its_step(tmp_path):
    told = []
    tuning = new(tmp_path, repa=0.5, repa_stop=2)
    tuning.run(lambda progress, means: told.append("repa" in means))
    assert told == [True, True, False, False, False, False]


def test_alignment_ends_for_good_when_it_works_against_drawing(tmp_path):
    tuning = new(tmp_path, repa=0.5)
    up = next(weight for name, weight in tuning.adapters.named_parameters() if name.endswith("up"))
    cost = up.sum()[None]
    tuning._compare({"flow": cost, "repa": 3 * cost}, 100)
    assert tuning.stage.memory["agreement"] == pytest.approx(1.0) and tuning._aligns()
    tuning._compare({"flow": cost, "repa": -cost}, 120)
    assert tuning._aligns()  # one bad look is no verdict
    tuning._compare({"flow": cost, "repa": -cost}, 140)
    assert tuning.stage.memory["agreement"] < 0 and not tuning._aligns()
    tuning.stage.save()
    assert not new(tmp_path, repa=0.5)._aligns()


def test_layers_that_are_not_used_are_left_out(tmp_path):
    every = ("attention", "generation", "head")
    drawn, said = (new(tmp_path / teach, teach=teach, parts=every).result() for teach in ("generation", "captioning"))
    assert any("vision_gen" in name for name in drawn) and not any("lm_head" in name for name in drawn)
    assert any("lm_head" in name for name in said) and not any("vision_gen" in name for name in said)
    with pytest.raises(ValueError, match="no layer to train"):
        new(tmp_path / "none", teach="captioning", parts=("generation",))


def test_a_layer_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="got layer 3 .* expected 1 to 2"):
        new(tmp_path, repa=0.5, repa_layer=3)


def test_options_have_bounds():
    for wrong in ({"steps": 0}, {"rank": 0}, {"drop": 1.5}, {"teach": "all"}, {"parts": ("vae",)}, {"typo": 1}):
        with pytest.raises(ValidationError):
            FineTuneOptions(**wrong)
    assert json.loads(FineTuneOptions().model_dump_json())["rank"] == 16


def test_too_few_pictures_are_refused(tmp_path):
    for few, words in (
        (Examples(), "no picture to learn from"),
        (examples(1), "one picture to learn from, at least two"),
        (Examples(problems=["a.png: broken"]), "left out a.png: broken"),
    ):
        with pytest.raises(ValueError, match=words):
            FineTune(new_subject(micro_pipeline()), few, FineTuneOptions(), BASE, tmp_path / "state.safetensors")
