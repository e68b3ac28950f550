import math
from typing import Any

import pytest
import torch
from golden import micro, recipe, relative
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from janusflow_core.guidance import Guidance, guide, optimal_scale
from janusflow_core.sampling import integrate, time_grid

COND, UNCOND, Z = (recipe(name, (3, 4, 6, 4), 0) for name in ("cond", "uncond", "z"))
weights = st.floats(-2, 12)
times = st.floats(0, 0.99)


def combined(t: float = 0.4, **how: Any) -> Tensor:
    return Guidance(**how).combine(Z, torch.tensor([t]), COND, UNCOND)


@given(weights, weights)
def test_guidance_is_linear_in_its_weight(first: float, second: float):
    middle = guide(COND, UNCOND, (first + second) / 2)
    mean = (guide(COND, UNCOND, first) + guide(COND, UNCOND, second)) / 2
    torch.testing.assert_close(middle, mean, rtol=0, atol=1e-4)


@given(weights)
def test_guidance_leaves_agreement_alone(weight: float):
    torch.testing.assert_close(guide(COND, COND, weight), COND, rtol=0, atol=1e-4)


def test_guidance_of_one_and_of_none():
    assert torch.equal(guide(COND, UNCOND, 1.0), COND)
    assert torch.equal(guide(COND, UNCOND, 0.0), UNCOND)


def test_plain_guidance_is_the_papers():
    assert torch.equal(combined(weight=3.0), 3 * COND - 2 * UNCOND)


# --- zero star --------------------------------------------------------------------------------------------------


def test_the_optimal_scale_is_the_nearest():
    """No other factor brings the unconditional velocity nearer to the conditional one."""
    scale = optimal_scale(COND, UNCOND)
    distance = (COND - scale * UNCOND).square().sum((1, 2, 3))
    for shift in (-0.1, -1e-2, 1e-2, 0.1):
        assert (distance < (COND - (scale + shift) * UNCOND).square().sum((1, 2, 3))).all()


@given(weights, st.floats(0.1, 10))
def test_zero_star_does_not_care_how_long_the_unconditional_velocity_is(weight: float, factor: float):
    how = Guidance(weight, zero_star=True)
    t = torch.tensor([0.3])
    found = how.combine(Z, t, COND, factor * UNCOND)
    torch.testing.assert_close(found, how.combine(Z, t, COND, UNCOND), rtol=1e-4, atol=1e-4)


def test_zero_star_of_parallel_velocities_is_the_conditional_one():
    found = Guidance(5.0, zero_star=True).combine(Z, torch.tensor([0.3]), COND, -0.2 * COND)
    torch.testing.assert_close(found, COND, rtol=1e-5, atol=1e-5)


# --- rescale ----------------------------------------------------------------------------------------------------


def ahead(t: float, v: Tensor) -> Tensor:
    return Z + (1 - t) * v


@given(st.floats(1.5, 12), times)
def test_full_rescaling_keeps_the_contrast_of_the_prompt_alone(weight: float, t: float):
    found = ahead(t, combined(t, weight=weight, rescale=1.0)).std((1, 2, 3))
    torch.testing.assert_close(found, ahead(t, COND).std((1, 2, 3)), rtol=1e-3, atol=1e-3)


@given(times, st.floats(0.01, 1))
def test_rescaling_changes_the_length_of_the_picture_and_nothing_else(t: float, share: float):
    strong, found = ahead(t, combined(t, weight=6.0)), ahead(t, combined(t, weight=6.0, rescale=share))
    ratio = (found * strong).sum((1, 2, 3), keepdim=True) / strong.square().sum((1, 2, 3), keepdim=True)
    torch.testing.assert_close(found, ratio * strong, rtol=1e-3, atol=1e-3)


# --- when -------------------------------------------------------------------------------------------------------


@given(st.floats(0, 1), st.floats(0, 1), times)
def test_guidance_acts_in_its_interval(first: float, second: float, t: float):
    start, end = sorted((first, second))
    assert Guidance(2.0, start, end).guides(t) == (start <= round(t, 6) < end)
    assert not Guidance(1.0, start, end).guides(t)


@pytest.mark.parametrize("start", [0.1, 0.2, 0.3, 0.7])
def test_a_time_that_comfyui_has_rounded_counts_as_the_librarys(start: float):
    """It counts noise in float32: 1 - 0.8 is a little less than 0.2 there."""
    rounded = 1.0 - float(torch.tensor(1.0 - start))
    assert (
        rounded != start and Guidance(2.0, start, 1.0).guides(rounded) and not Guidance(2.0, 0, start).guides(rounded)
    )


def test_outside_the_interval_the_prompt_is_alone_and_nothing_else_is_computed(monkeypatch):
    model, rows = micro().model, [recipe("row", (5, 32), 0), recipe("other", (3, 32), 0)]
    z, size, seen = recipe("z", (2, 4, 4, 6), 0), (4, 6), []
    flow = model.flow
    monkeypatch.setattr(
        model, "flow", lambda z, t, prompt, *rest: seen.append(len(prompt)) or flow(z, t, prompt, *rest)
    )
    part, always, never = (
        model.guided(rows, None, how, size) for how in (Guidance(4.0, 0.25, 0.75), Guidance(4.0), Guidance(1.0))
    )
    for t, same in ((0.0, never), (0.25, always), (0.6, always), (0.75, never), (0.9, never)):
        seen.clear()
        torch.testing.assert_close(part(z, t), same(z, t), rtol=1e-5, atol=1e-6)
        assert seen == [2 if same is never else 4] * 2
    assert relative(part(z, 0.3), never(z, 0.3)) > 1e-3


def test_an_interval_of_nothing_is_no_guidance():
    options: dict[str, Any] = {"width": 32, "height": 48, "steps": 4, "output": "latent"}
    found = micro().generate("a cat", guidance=5.0, guidance_start=0.3, guidance_end=0.3, **options)
    torch.testing.assert_close(found, micro().generate("a cat", guidance=1.0, **options))


def test_all_choices_together_equal_a_loop_by_hand():
    prompt, noise = "a red cat", recipe("noise", (2, 4, 4, 6), 0)
    alone = micro().guided_velocity([prompt] * 2, None, Guidance(1.0), noise.shape)
    none = micro().guided_velocity([prompt] * 2, None, Guidance(0.0), noise.shape)
    z, grid = noise, time_grid(6, shift=2.0)
    for t, t_next in zip(grid, grid[1:], strict=False):
        v = alone(z, t)
        if 0.15 <= t < 0.7:
            other = none(z, t)
            dot, length = (v * other).flatten(1).sum(1), (other * other).flatten(1).sum(1)
            other = other * (dot / length)[:, None, None, None]
            strong = other + 3.0 * (v - other)
            x, x_plain = z + (1 - t) * strong, z + (1 - t) * v
            same = x * (x_plain.flatten(1).std(1) / x.flatten(1).std(1))[:, None, None, None]
            v = (0.6 * same + 0.4 * x - z) / (1 - t)
        z = z + (t_next - t) * v
    found = micro().generate(
        prompt,
        num_images=2,
        noise=noise,
        steps=6,
        shift=2.0,
        guidance=3.0,
        guidance_start=0.15,
        guidance_end=0.7,
        guidance_rescale=0.6,
        cfg_zero_star=True,
        output="latent",
    )
    torch.testing.assert_close(found, z, rtol=1e-4, atol=1e-4)
    plain = micro().guided_velocity([prompt] * 2, None, Guidance(3.0), noise.shape)
    assert relative(found, integrate(plain, noise, grid)) > 1e-2


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"weight": math.nan}, "guidance must be a number, got nan"),
        ({"start": 0.5, "end": 0.4}, "0 to 1 and in this order, got 0.5 and 0.4"),
        ({"start": -0.1}, "got -0.1 and 1.0"),
        ({"end": 1.1}, "got 0.0 and 1.1"),
        ({"end": math.nan}, "got 0.0 and nan"),
        ({"rescale": 1.5}, r"rescaling of guidance must lie in \[0, 1\], got 1.5"),
        ({"rescale": math.nan}, "got nan"),
    ],
)
def test_other_values_are_refused(how: dict[str, float], words: str):
    with pytest.raises(ValueError, match=words):
        Guidance(**how)  # pyright: ignore[reportArgumentType]
