"""Masks and kernels against what they are said to mean, written out token by token."""

import torch
from golden import MODULE, assert_close, recipe
from hypothesis import given
from hypothesis import strategies as st

from janusflow_core.attention import apart, eager, left_padded_mask, prefix_mask, sdpa, segment_mask


def visible(mask: torch.Tensor, row: int, query: int) -> list[int]:
    return mask[row, 0, query].nonzero().flatten().tolist()


@given(st.lists(st.integers(0, 5), min_size=1, max_size=3), st.integers(0, 6))
def test_left_padded_mask_is_causal_over_what_is_real(padding: list[int], first: int):
    real = torch.arange(7) >= torch.tensor(padding)[:, None]
    mask = left_padded_mask(real, first)
    assert mask.shape == (len(padding), 1, 7 - first, 7)
    for row, pad in enumerate(padding):
        for query in range(first, 7):
            assert visible(mask, row, query - first) == (list(range(pad, query + 1)) if query >= pad else [query])


@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.sampled_from([0, 4]))
def test_prefix_mask_hides_the_padding_behind_short_prompts(lengths: list[int], first: int):
    mask = prefix_mask(lengths, 4, 7, first, torch.device("cpu")).expand(len(lengths), -1, -1, -1)
    for row, length in enumerate(lengths):
        for query in range(max(first, 4), 7):
            assert visible(mask, row, query - first) == [*range(length), *range(4, query + 1)]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=8))
def test_segments_see_the_common_part_and_themselves(numbers: list[int]):
    mask = segment_mask(torch.tensor([numbers]))
    for query, own in enumerate(numbers):
        assert visible(mask, 0, query) == [key for key in range(query + 1) if numbers[key] in (0, own)]


def test_attention_written_out_equals_the_fused_kernel():
    q, k, v = (recipe(name, (2, 3, 5, 8), 0) for name in "qkv")
    for mask in (None, segment_mask(torch.tensor([[0, 0, 1, 2, 2]]))):
        assert_close(eager(q, k, v, mask), sdpa(q, k, v, mask), MODULE)


def test_samples_of_a_row_are_attended_apart():
    """Against a mask that hides every other sample."""
    lengths = [[3, 5, 1], [9]]
    q, k, v = (torch.randn(2, 2, 9, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    numbers = torch.tensor([[0] * 3 + [1] * 5 + [2], [0] * 9])
    own = numbers[:, :, None] == numbers[:, None, :]
    mask = (own & torch.ones(9, 9, dtype=torch.bool).tril())[:, None]
    torch.testing.assert_close(apart(lengths)(q, k, v, None), eager(q, k, v, mask))
