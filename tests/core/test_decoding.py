"""Continuations: greedy ones token for token as recorded, sampled ones by their rules."""

import math

import pytest
import torch
from golden import (
    CONVERSATIONS,
    MANIFEST,
    MODULE,
    assert_close,
    conversation_inputs,
    micro,
    pipeline,
    recipe,
    tensors,
)
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from janusflow_core.attention import KVCache
from janusflow_core.decoding import (
    AT_MOST,
    SamplingOptions,
    bytes_a_row,
    choose,
    fitting,
    generate,
    penalise,
    truncate,
    uniform,
)
from janusflow_core.pipeline import JanusFlowPipeline

CASES = MANIFEST["und"]["cases"]
BATCHES = [name for name, case in CASES.items() if "members" in case]
SAMPLED = SamplingOptions(temperature=1.2, top_p=0.95, top_k=50, repetition_penalty=1.1)


@pytest.mark.parametrize("name", ["temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_options_that_are_no_numbers_are_refused(name: str, value: float):
    with pytest.raises(ValueError, match=rf"{name} .*{value}"):
        SamplingOptions(**{name: value})


def continue_golden(names: list[str], eos: int = -1, tokens: int = 24) -> tuple[list[list[int]], Tensor]:
    """New ids of golden conversations in one batch, and the logits (B, N, V) that they were chosen from."""
    pipe, seen = pipeline(), []
    _, real, embeddings = conversation_inputs(pipe, names)

    def head(hidden: Tensor) -> Tensor:
        seen.append(pipe.model.logits(hidden))
        return seen[-1]

    texts = generate(
        pipe.model.language_model.model,
        head,
        pipe.model.encode_prompt,
        embeddings,
        real,
        eos=eos,
        max_new_tokens=tokens,
    )
    return texts, torch.stack(seen, dim=1)


# --- greedy -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_greedy_ids_and_logits_alone_equal_golden(name: str):
    (found,), logits = continue_golden([name])
    assert found == CASES[name]["greedy_ids"] == tensors(f"und_{name}")["greedy_ids"].tolist()
    assert pipeline().tokenizer.decode(found) == CASES[name]["answer"]
    assert_close(logits[0], tensors(f"und_{name}")["greedy_logits"], MODULE)


@pytest.mark.parametrize("name", BATCHES)
def test_greedy_ids_and_logits_batched_equal_golden(name: str):
    found, logits = continue_golden(CASES[name]["members"])
    assert found == CASES[name]["greedy_ids"] == [CASES[member]["greedy_ids"] for member in CASES[name]["members"]]
    assert_close(logits, tensors(f"und_{name}")["greedy_logits"], MODULE)


@pytest.mark.parametrize("name", ["early_stop", "early_stop_batch"])
def test_rows_stop_at_eos_as_golden(name: str):
    case, eos = CASES[name], CASES[name]["eos_token_id"]
    members = CASES[case["like"]].get("members", [case["like"]])
    rows = case["greedy_ids"] if name.endswith("batch") else [case["greedy_ids"]]
    found, logits = continue_golden(members, eos)
    assert found == [row[: row.index(eos)] if eos in row else row for row in rows]
    assert logits.shape[1] == max(len(row) for row in rows)


# --- what the loop promises -------------------------------------------------------------------------------------


def continue_micro(
    rows: list[list[int]], seeds: list[int], options: SamplingOptions = SAMPLED, tokens: int = 12, **changed
) -> list[list[int]]:
    pipe: JanusFlowPipeline = micro()
    ids, real = pipe.tokenizer.pad_left(rows)
    return generate(
        pipe.model.language_model.model,
        pipe.model.logits,
        pipe.model.encode_prompt,
        pipe.model.encode_prompt(ids),
        real,
        max_new_tokens=tokens,
        options=options,
        seeds=seeds,
        **{"eos": -1, **changed},
    )


prompts = st.lists(st.lists(st.integers(0, 1023), min_size=1, max_size=8), min_size=1, max_size=4)


@settings(max_examples=30)
@given(prompts, st.integers(0, 99))
def test_sampled_rows_are_the_same_alone_and_batched(rows: list[list[int]], seed: int):
    together = continue_micro(rows, [seed + k for k in range(len(rows))])
    assert together == [continue_micro([row], [seed + k])[0] for k, row in enumerate(rows)]


@settings(max_examples=30)
@given(prompts, st.integers(0, 99))
def test_fixed_shapes_write_the_same(rows: list[list[int]], seed: int):
    """What a GPU replays as a graph, here step by step: places as data, attention over the whole capacity."""
    seeds = [seed + k for k in range(len(rows))]
    assert continue_micro(rows, seeds, fixed=True) == continue_micro(rows, seeds)


@pytest.mark.parametrize("fixed", [False, True])
def test_a_cache_holds_what_was_read_when_all_rows_end_early(fixed: bool):
    rows = [[5, 6, 7], [8, 9]]
    free = continue_micro(rows, [1, 2], SamplingOptions(), tokens=12)
    eos = free[0][4]
    cache = KVCache(3 + 12)
    (text,) = continue_micro(rows[:1], [1], SamplingOptions(), eos=eos, cache=cache, fixed=fixed)
    assert text == free[0][: free[0].index(eos)]
    assert cache.length == 3 + len(text) and cache.slot is None


def test_memory_that_nobody_wrote_changes_nothing():
    cache = KVCache(30)
    continue_micro([[5, 6]], [0], tokens=1, cache=cache)
    for part in (part for layer in cache.buffers for part in layer):
        part[:, :, cache.length :] = float("nan")
    cache.length = 0
    assert continue_micro([[5, 6, 7]], [0], cache=cache, fixed=True) == continue_micro([[5, 6, 7]], [0])


def test_rows_never_share_a_seed_that_one_of_them_lacks():
    with pytest.raises(ValueError, match="got 1 seeds, expected one to count from, or 2, one for each"):
        continue_micro([[5, 6], [7, 8]], [3])


def test_seeds_change_samples_but_not_greedy_texts():
    row = [[5, 6, 7]]
    assert continue_micro(row, [1]) == continue_micro(row, [1]) != continue_micro(row, [2])
    greedy = SamplingOptions()
    assert continue_micro(row, [1], greedy) == continue_micro(row, [2], greedy)


def test_a_cold_sample_is_greedy():
    row, cold = [[5, 6, 7]], SamplingOptions(temperature=1e-4)
    assert continue_micro(row, [1], cold) == continue_micro(row, [1], SamplingOptions())


def test_tokens_are_reported_in_order_and_eos_is_not():
    rows, seen = [[5, 6, 7], [8, 9]], []
    free = continue_micro(rows, [1, 2])
    eos = next(token for token in free[0][2:] if token not in free[1])
    found = continue_micro(rows, [1, 2], eos=eos, on_token=lambda row, token: seen.append((row, token)))
    assert found == [free[0][: free[0].index(eos)], free[1]]
    assert [[token for row, token in seen if row == k] for k in (0, 1)] == found
    assert seen[:2] == [(0, found[0][0]), (1, found[1][0])]


def test_an_exception_of_the_callback_ends_the_run():
    seen = []

    def stop(row: int, token: int) -> None:
        seen.append(token)
        if len(seen) == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        continue_micro([[5, 6, 7]], [1], on_token=stop)
    assert len(seen) == 3


@pytest.mark.parametrize("tokens", [1, 5])
def test_no_more_tokens_than_asked_for(tokens: int):
    assert [len(row) for row in continue_micro([[5], [6, 7]], [1, 2], tokens=tokens)] == [tokens, tokens]


def test_a_penalty_ends_repetition():
    greedy = continue_micro([[5, 6, 7]], [0], SamplingOptions(), tokens=40)[0]
    penalised = continue_micro([[5, 6, 7]], [0], SamplingOptions(presence_penalty=1e4), tokens=40)[0]
    assert len(set(greedy)) < 40 and len(set(penalised)) == 40


@settings(max_examples=20)
@given(prompts, st.lists(st.integers(0, 1023), min_size=1, max_size=5), st.integers(1, 6))
def test_a_cache_carries_a_conversation_on(rows: list[list[int]], more: list[int], tokens: int):
    """A second turn behind a kept first one is written as if the whole conversation were read anew."""
    pipe, seeds = micro(), list(range(len(rows)))
    written = continue_micro(rows, seeds, tokens=tokens)
    whole = continue_micro([row + text + more for row, text in zip(rows, written, strict=True)], seeds)

    ids, real = pipe.tokenizer.pad_left(rows)
    cache = KVCache(ids.shape[1] + tokens + len(more) + 12)
    assert continue_micro(rows, seeds, tokens=tokens, cache=cache) == written
    assert cache.length == ids.shape[1] + tokens - 1  # the last token was chosen, but not read yet
    turn = torch.tensor([[text[-1], *more] for text in written])
    seen = torch.cat((real, torch.ones(len(rows), tokens - 1 + turn.shape[1], dtype=torch.bool)), dim=1)
    again = generate(
        pipe.model.language_model.model,
        pipe.model.logits,
        pipe.model.encode_prompt,
        pipe.model.encode_prompt(turn),
        seen,
        eos=-1,
        max_new_tokens=12,
        options=SAMPLED,
        cache=cache,
        seeds=seeds,
    )
    assert again == whole


def test_a_rule_decides_what_may_be_written():
    heard = []

    def only_even_and_never_twice(logits: Tensor, texts: list[list[int]]) -> Tensor:
        heard.append([list(text) for text in texts])
        forbidden = torch.arange(logits.shape[1]).expand_as(logits) % 2 == 1
        for row, text in enumerate(texts):
            forbidden[row, text] = True
        return logits.masked_fill(forbidden, float("-inf"))

    texts = continue_micro([[5, 6], [7]], [0, 1], tokens=9, rules=[only_even_and_never_twice])
    assert all(token % 2 == 0 for text in texts for token in text)
    assert [len(set(text)) for text in texts] == [9, 9]
    assert heard == [[text[:step] for text in texts] for step in range(9)]


def test_rules_come_after_the_penalties():
    def forget(logits: Tensor, texts: list[list[int]]) -> Tensor:
        assert all((row[text] < -1e3).all() for row, text in zip(logits, texts, strict=True))
        return logits

    continue_micro([[5, 6, 7]], [0], SamplingOptions(presence_penalty=1e4), tokens=6, rules=[forget])


@given(st.integers(1, 10**12), st.integers(1, 10**9))
def test_a_batch_fits_half_of_what_is_free(free: int, row: int):
    found = fitting(free, row)
    assert 1 <= found <= AT_MOST and (found == 1 or 2 * found * row <= free)
    assert found == AT_MOST or 2 * (found + 1) * row > free


def test_a_rows_bytes_hold_its_keys_and_values():
    config = micro().model.config.language
    cache = KVCache(50)
    continue_micro([[5] * 38], [0], tokens=12, cache=cache)
    held = sum(part[:, :, :50].nbytes for layer in cache.buffers for part in layer)
    assert held < bytes_a_row(config, 50, torch.float32) < 10 * held
    assert bytes_a_row(config, 50, torch.bfloat16) < 0.6 * bytes_a_row(config, 50, torch.float32) + 16 * 1024


# --- which tokens may be drawn ----------------------------------------------------------------------------------

scores = st.lists(st.floats(-8, 8, width=32), min_size=2, max_size=24, unique=True).map(lambda row: torch.tensor([row]))


def kept(logits: Tensor, **options: float) -> Tensor:
    found = truncate(logits, SamplingOptions(temperature=1.0, **options))
    assert torch.equal(found[found.isfinite()], logits[found.isfinite()])
    return found.isfinite()[0]


@given(scores, st.floats(0.01, 0.99))
def test_the_nucleus_is_the_smallest_set_that_reaches_its_mass(logits: Tensor, top_p: float):
    probability = logits.softmax(-1)[0].double()
    inside = kept(logits, top_p=top_p)
    assert probability[inside].sum() >= top_p - 1e-5
    assert probability[inside].sum() - probability[inside].min() < top_p + 1e-5
    assert inside.all() or probability[inside].min() >= probability[~inside].max()


@given(scores, st.integers(1, 30))
def test_top_k_keeps_the_best(logits: Tensor, top_k: int):
    inside = kept(logits, top_k=top_k)
    assert inside.sum() == min(top_k, logits.shape[1])
    assert inside.all() or logits[0, inside].min() > logits[0, ~inside].max()


@given(scores, st.floats(0.01, 1))
def test_min_p_keeps_what_is_near_the_best(logits: Tensor, min_p: float):
    ratio = (logits - logits.max()).exp()[0]
    assume(((ratio - min_p).abs() > 1e-5).all())
    assert torch.equal(kept(logits, min_p=min_p), ratio > min_p)


@pytest.mark.parametrize(
    ("options", "warper"),
    [
        ({"top_p": 0.7}, TopPLogitsWarper(0.7)),
        ({"top_k": 9}, TopKLogitsWarper(9)),
        ({"min_p": 0.2}, MinPLogitsWarper(0.2)),
    ],
)
def test_truncation_equals_transformers(options: dict, warper):
    logits = 3 * recipe("scores", (5, 200), 0)
    assert torch.equal(truncate(logits, SamplingOptions(**options)), warper(None, logits.clone()))


def test_repetition_penalty_equals_transformers():
    logits, said = recipe("scores", (2, 30), 0), torch.tensor([[1, 4, 4], [0, 29, 7]])
    seen = torch.zeros_like(logits, dtype=torch.bool).scatter(1, said, True)
    expected = RepetitionPenaltyLogitsProcessor(1.7)(said, logits.clone())
    torch.testing.assert_close(penalise(logits, seen, SamplingOptions(repetition_penalty=1.7)), expected)
    presence = penalise(logits, seen, SamplingOptions(presence_penalty=0.5))
    torch.testing.assert_close(presence, logits - 0.5 * seen)


def test_tokens_are_drawn_by_their_probability():
    logits, options = torch.tensor([[0.0, 1.0, 2.0, -1.0]]), SamplingOptions(temperature=0.8)
    drawn = choose(logits.expand(4000, -1), options, uniform(range(4000), 1)[:, 0])
    frequency = torch.bincount(drawn, minlength=4) / 4000
    torch.testing.assert_close(frequency, (logits[0] / 0.8).softmax(-1), rtol=0, atol=0.025)


@given(scores, st.floats(0, 1, exclude_max=True, width=32), st.floats(0.05, 1), st.integers(1, 4))
@example(torch.tensor([[2.0, 0.0, -8.0, -7.0]]), 1 - 2**-24, 0.5, 0)
@example(torch.tensor([[-8.0, 2.0]]), 0.0, 0.5, 0)
def test_no_luck_draws_a_token_that_is_left_out(logits: Tensor, luck: float, top_p: float, top_k: int):
    options = SamplingOptions(temperature=0.7, top_p=top_p, top_k=top_k)
    (token,) = choose(logits, options, torch.tensor([luck])).tolist()
    assert truncate(logits / 0.7, options)[0, token].isfinite()


def test_luck_is_a_rows_own_and_longer_answers_begin_alike():
    assert torch.equal(uniform([3, 4, 2**64 - 1], 9)[1], uniform([4], 9)[0])
    assert torch.equal(uniform([7], 4), uniform([7], 9)[:, :4])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": -1.0}, "temperature.*-1.0"),
        ({"top_p": 0.0}, "top_p.*0.0"),
        ({"top_p": 1.5}, "top_p.*1.5"),
        ({"top_k": -2}, "top_k.*-2"),
        ({"min_p": 1.1}, "min_p.*1.1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty.*0.0"),
    ],
)
def test_options_out_of_range_are_refused(options: dict, words: str):
    with pytest.raises(ValueError, match=words):
        SamplingOptions(**options)
