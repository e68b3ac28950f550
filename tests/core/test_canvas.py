from typing import Any

import pytest
import torch
from golden import micro, relative
from hypothesis import given
from hypothesis import strategies as st

from janusflow_core.canvas import varied_noise
from janusflow_core.sampling import draw_noise, spherical_mix
from janusflow_core.seeds import own_seeds

SMALL: dict[str, Any] = {"width": 32, "height": 48, "steps": 2, "output": "latent"}
seeds_ = st.lists(st.integers(0, 2**40), min_size=1, max_size=4)


@given(st.integers(0, 2**40), st.integers(1, 6))
def test_one_seed_counts_on(seed: int, rows: int):
    assert own_seeds(seed, rows) == list(range(seed, seed + rows))


@given(seeds_)
def test_several_seeds_are_one_for_each(seeds: list[int]):
    assert own_seeds(seeds, len(seeds)) == seeds
    with pytest.raises(ValueError, match=f"got {len(seeds)} seeds, expected one to count from, or {len(seeds) + 1}"):
        own_seeds(seeds, len(seeds) + 1)


@given(seeds_, st.integers(0, 2**40), st.floats(0, 1))
def test_a_variation_is_noise_of_the_same_kind_between_two(seeds: list[int], other: int, share: float):
    first, second = draw_noise((4, 12, 12), seeds), draw_noise((4, 12, 12), [other] * len(seeds))
    mixed = varied_noise((4, 12, 12), seeds, [other] * len(seeds), share)
    torch.testing.assert_close(mixed, spherical_mix(first, second, share))
    lengths = [part.flatten(1).norm(dim=1) for part in (first, mixed, second)]
    shortest, longest = torch.minimum(lengths[0], lengths[2]), torch.maximum(lengths[0], lengths[2])
    assert (lengths[1] > 0.99 * shortest).all() and (lengths[1] < 1.01 * longest).all()


def test_the_ends_of_the_arc_are_the_seeds_own():
    first, second = draw_noise((4, 6, 4), [1, 2]), draw_noise((4, 6, 4), [7, 8])
    assert torch.equal(varied_noise((4, 6, 4), [1, 2], [7, 8], 0.0), first)
    torch.testing.assert_close(spherical_mix(first, second, 1.0), second)
    torch.testing.assert_close(spherical_mix(first, first, 0.4), first)
    half = spherical_mix(first, second, 0.5)
    torch.testing.assert_close(
        (half - first).flatten(1).norm(dim=1), (half - second).flatten(1).norm(dim=1), rtol=0.3, atol=0
    )


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_no_other_share(share: float):
    with pytest.raises(ValueError, match=r"strength of a variation must lie in \[0, 1\]"):
        varied_noise((4, 2, 2), [0], [1], share)


def test_each_picture_has_its_own_seed():
    found = micro().generate(["a cat", "a dog"], seed=[9, 4], **SMALL)
    for row, (prompt, seed) in enumerate((("a cat", 9), ("a dog", 4))):
        torch.testing.assert_close(
            found[row : row + 1], micro().generate(prompt, seed=seed, **SMALL), rtol=1e-4, atol=1e-5
        )


def test_more_variation_is_further_away_and_counts_on_by_picture():
    plain = micro().generate("a cat", seed=3, **SMALL)
    found = [
        micro().generate("a cat", seed=3, variation_seed=8, variation_strength=share, **SMALL)
        for share in (0.1, 0.5, 1)
    ]
    distances = [relative(picture, plain) for picture in found]
    assert distances == sorted(distances) and distances[0] > 1e-2
    torch.testing.assert_close(found[2], micro().generate("a cat", seed=8, **SMALL), rtol=1e-4, atol=1e-5)
    second = micro().generate("a cat", num_images=2, seed=2, variation_seed=7, variation_strength=0.5, **SMALL)[1:]
    torch.testing.assert_close(second, found[1], rtol=1e-4, atol=1e-5)
