"""What is remembered of the last conversation: the longest common beginning, never more."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from janusflow_core.attention import KVCache
from janusflow_core.recall import Recall

CPU, LAYERS = torch.device("cpu"), 2
MARKS = st.lists(st.integers(0, 2), min_size=1, max_size=8)


def read(marks: list[int], cache: KVCache) -> KVCache:
    """A cache that was read to the end: a token's keys are its mark, its values what it has before it and itself."""
    known = cache.length
    for layer in range(LAYERS):
        keys = torch.tensor(marks[known:], dtype=torch.float32).view(1, 1, -1, 1)
        values = torch.tensor([float(sum(marks[: at + 1])) for at in range(known, len(marks))]).view(1, 1, -1, 1)
        cache.extend(layer, keys, values)
    cache.keep(len(marks) - known)
    return cache


@given(st.lists(st.tuples(st.sampled_from("ab"), MARKS), min_size=1, max_size=5))
def test_it_holds_what_two_conversations_begin_with(conversations):
    recall, last = Recall(), ("", list[int]())
    for whose, marks in conversations:
        cache = recall.begin(whose, marks, 3, CPU)
        alike = [*(one == other for one, other in zip(marks, last[1], strict=False)), False].index(False)
        # Its last token is always read: what comes after it has to be known.
        assert cache.length == (min(alike, len(marks) - 1) if whose == last[0] else 0)
        assert cache.capacity == len(marks) + 3
        read(marks, cache)
        for keys, values in cache.buffers:
            assert keys[0, 0, : len(marks), 0].tolist() == marks
            assert values[0, 0, : len(marks), 0].tolist() == [sum(marks[: at + 1]) for at in range(len(marks))]
        recall.keep(whose, marks, cache, CPU)
        last = whose, marks


def test_what_it_holds_is_its_own_and_no_larger_than_it_must_be():
    recall = Recall()
    cache = read([1, 2, 3], recall.begin("", [1, 2, 3], 100, CPU))
    recall.keep("", [1, 2, 3], cache, CPU)
    for layer in cache.buffers:
        for part in layer:
            part.zero_()
    again = recall.begin("", [1, 2, 3, 4], 0, CPU)
    assert again.buffers[0][0][0, 0, :3, 0].tolist() == [1, 2, 3]
    assert recall._cache.capacity == 3
    recall.forget()
    assert recall.begin("", [1, 2, 3, 4], 0, CPU).length == 0


def test_a_cache_is_moved_where_it_is_computed():
    cache = read([1, 2, 3], KVCache(5))
    there = cache.spread([0], 4, 2, torch.device("meta"))
    assert there.length == 2 and there.capacity == 4 and there.buffers[0][0].device.type == "meta"
    assert Recall().begin("", [1], 3, CPU).buffers == []
    with pytest.raises(IndexError):
        cache.spread([0], 4, 2).buffers[LAYERS]
