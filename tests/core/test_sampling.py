import itertools
import math
from typing import get_args

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from golden import MODULE, assert_close, curved, read_json, recipe, relative
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from janusflow_core.config import Solver
from janusflow_core.sampling import (
    SOLVERS,
    Inpaint,
    draw_noise,
    fresh_noise,
    integrate,
    interpolate,
    logit_normal,
    time_grid,
)

NOISE, DATA = recipe("noise", (2, 4, 6, 4), 0), recipe("data", (2, 4, 6, 4), 0)
steps_ = st.integers(1, 60)
starts = st.floats(0, 0.999)
shifts = st.floats(0.05, 20)
solvers = st.sampled_from(list(SOLVERS))


# --- times ------------------------------------------------------------------------------------------------------


@given(steps_, starts, shifts)
def test_time_grid_rises_from_start_to_one(steps: int, start: float, shift: float):
    times = time_grid(steps, start, shift)
    assert len(times) == steps + 1 and times[-1] == 1
    assert all(0 <= t < t_next <= 1 for t, t_next in zip(times, times[1:], strict=False))
    assert times[0] == pytest.approx(start / (start + shift * (1 - start)))


@given(steps_, starts)
def test_time_grid_without_shift_is_even(steps: int, start: float):
    times = time_grid(steps, start)
    assert times == pytest.approx([start + (1 - start) * k / steps for k in range(steps + 1)])


@given(st.integers(2, 60), st.floats(1.1, 20))
def test_shift_spends_steps_near_the_noise(steps: int, shift: float):
    pairs = zip(time_grid(steps, shift=shift)[1:-1], time_grid(steps)[1:-1], strict=True)
    assert all(shifted < even for shifted, even in pairs)


@pytest.mark.parametrize("steps", [int(n) for n in read_json("golden/times.json")])
def test_times_equal_golden(steps: int):
    golden, times = read_json("golden/times.json")[str(steps)], time_grid(steps)
    assert [1000 * t for t in times[:-1]] == pytest.approx(golden["t_fp32"], rel=1e-6)
    assert times[1] - times[0] == pytest.approx(golden["dt_fp32"], rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0,), "at most 1,000,000, got 0"),
        ((5, 1.0), r"\[0, 1\), got 1.0"),
        ((5, -0.1), r"\[0, 1\), got -0.1"),
        ((5, math.nan), r"\[0, 1\), got nan"),
        ((5, 0.0, 0.0), "shift must be a number above 0, got 0.0"),
        ((5, 0.0, math.nan), "shift must be a number above 0, got nan"),
        ((5, 0.0, math.inf), "shift must be a number above 0, got inf"),
    ],
)
def test_time_grid_refuses(arguments: tuple, words: str):
    with pytest.raises(ValueError, match=words):
        time_grid(*arguments)


# --- solvers ----------------------------------------------------------------------------------------------------


@given(steps_, starts, shifts, st.sampled_from(["euler", "heun", "ab2", "dpmpp_2m"]))
def test_constant_velocity_lands_exactly(steps: int, start: float, shift: float, solver: str):
    times = time_grid(steps, start, shift)
    found = integrate(lambda z, t: DATA - NOISE, interpolate(DATA, NOISE, times[0]), times, solver)
    torch.testing.assert_close(found, DATA, rtol=0, atol=2e-5)


@given(steps_, shifts, solvers)
def test_velocity_towards_the_data_lands_exactly(steps: int, shift: float, solver: str):
    # The field whose every path is straight: from z at t, what is left to go over the time that is left.
    found = integrate(lambda z, t: (DATA - z) / (1 - t), NOISE, time_grid(steps, shift=shift), solver)
    torch.testing.assert_close(found, DATA, rtol=0, atol=2e-5)


@pytest.mark.parametrize("steps", [1, 7, 30])
def test_euler_equals_a_loop_by_hand(steps: int):
    z = NOISE
    for k in range(steps):
        z = z + curved(z, k / steps) / steps
    assert_close(integrate(curved, NOISE, time_grid(steps)), z, MODULE)


@pytest.mark.parametrize("steps", [2, 10, 30])
def test_euler_equals_diffusers_flow_match(steps: int):
    scheduler, z = FlowMatchEulerDiscreteScheduler(), NOISE
    scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps).tolist())
    for timestep in scheduler.timesteps:
        t = 1 - timestep.item() / 1000
        z = scheduler.step(-curved(z, t), timestep, z).prev_sample
    assert_close(integrate(curved, NOISE, time_grid(steps)), z, MODULE)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2), ("ab2", 2), ("dpmpp_2m", 2)])
def test_solvers_are_of_their_order(solver: str, order: int):
    # The last step is of first order, so stop short of it: integrate to 0.9 only.
    def at_nine_tenths(steps: int, solver: str) -> Tensor:
        return integrate(curved, NOISE, [0.9 * t for t in time_grid(steps)], solver)

    truth = at_nine_tenths(4000, "heun")
    coarse, fine = ((at_nine_tenths(steps, solver) - truth).norm().item() for steps in (40, 80))
    assert coarse / fine == pytest.approx(2**order, rel=0.3)


@pytest.mark.parametrize("solver", ["heun", "ab2", "dpmpp_2m"])
def test_second_order_lands_nearer_than_euler(solver: str):
    truth = integrate(curved, NOISE, time_grid(4000))
    found, plain = (integrate(curved, NOISE, time_grid(20), name) for name in (solver, "euler"))
    assert (found - truth).norm() < 0.5 * (plain - truth).norm()


def test_multistep_solvers_ask_once_a_step():
    for solver, evaluations in (("euler", 7), ("ab2", 7), ("dpmpp_2m", 7), ("renoise", 7), ("heun", 13)):
        seen: list[float] = []
        integrate(lambda z, t, seen=seen: seen.append(t) or z, NOISE, time_grid(7), solver)
        assert len(seen) == evaluations, solver


def test_renoising_equals_a_loop_by_hand():
    """From t = 0.1 on, up to 0.6, the noise that is left is four fifths another one, of the same deviation."""
    fresh, z = fresh_noise(NOISE), NOISE
    for k in range(10):
        t, t_next = k / 10, (k + 1) / 10
        v = curved(z, t)
        data, noise = z + (1 - t) * v, z - t * v
        if k in (1, 2, 3, 4, 5):
            noise = 0.6 * noise + 0.8 * next(fresh)
        z = t_next * data + (1 - t_next) * noise
    assert_close(integrate(curved, NOISE, time_grid(10), "renoise"), z, MODULE)


def test_new_noise_follows_from_each_row_of_the_noise_alone():
    start = draw_noise((4, 6, 4), [3, 8])
    both, second = fresh_noise(start), fresh_noise(start[1:])
    draws = [next(both) for _ in range(50)]
    for new in draws:
        assert torch.equal(new[1:], next(second))
    every = torch.stack(draws)  # (50, 2, 4, 6, 4)
    assert every.mean().abs() < 0.05 and every.std() == pytest.approx(1, abs=0.03)
    assert every[:, 0].flatten().dot(every[:, 1].flatten()).abs() < 4 * math.sqrt(every[:, 0].numel())
    assert not any(torch.equal(one, other) for one, other in itertools.pairwise(draws))
    # Of another start, as where the picture that one goes on from was rounded, the same noise still follows.
    found, expected = (integrate(curved, z, time_grid(9), "renoise", noise=start) for z in (start, start + 1e-6))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert relative(integrate(curved, start + 1e-6, time_grid(9), "renoise"), found) > 1e-2


def test_velocity_is_never_asked_for_at_one():
    seen = []
    for solver in SOLVERS:
        integrate(lambda z, t: seen.append(t) or z, NOISE, time_grid(7), solver)
    assert max(seen) < 1 and min(seen) == 0


def test_state_stays_float32_under_a_bfloat16_velocity():
    found = integrate(lambda z, t: (DATA - NOISE).bfloat16(), NOISE.bfloat16(), time_grid(1000))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, NOISE.bfloat16().float() + (DATA - NOISE).bfloat16().float(), rtol=0, atol=1e-4)


def test_each_step_is_reported_with_what_the_flow_heads_for():
    seen = []
    integrate(lambda z, t: DATA - NOISE, NOISE, time_grid(3), on_step=lambda *step: seen.append(step))
    assert [(done, steps) for done, steps, _ in seen] == [(1, 3), (2, 3), (3, 3)]
    for *_, ahead in seen:
        torch.testing.assert_close(ahead, DATA, rtol=0, atol=1e-5)


def test_an_exception_of_the_callback_ends_the_run():
    def stop(done: int, steps: int, ahead: Tensor) -> None:
        if done == 2:
            raise InterruptedError

    seen = []
    with pytest.raises(InterruptedError):
        integrate(lambda z, t: seen.append(t) or z, NOISE, time_grid(9), on_step=stop)
    assert len(seen) == 2


def test_every_solver_has_its_name_where_users_name_it():
    assert tuple(SOLVERS) == get_args(Solver)


def test_unknown_solver_is_named_with_the_known():
    with pytest.raises(ValueError, match="'rk45' is unknown.*euler, heun"):
        integrate(curved, NOISE, time_grid(2), "rk45")


# --- noise, inpainting ------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=4))
def test_each_row_of_noise_has_its_own_seed(seeds: list[int]):
    noise = draw_noise((4, 2, 6), seeds)
    assert noise.shape == (len(seeds), 4, 2, 6)
    for row, seed in zip(noise, seeds, strict=True):
        assert torch.equal(row, draw_noise((4, 2, 6), [seed])[0])


def test_noise_is_standard_normal():
    noise = draw_noise((4, 64, 64), [3])
    assert noise.mean().abs() < 0.03 and noise.std() == pytest.approx(1, abs=0.03)


@given(steps_, starts, shifts, solvers)
def test_inpainting_keeps_the_region_exactly(steps: int, start: float, shift: float, solver: str):
    mask = torch.zeros(1, 1, 6, 4)
    mask[..., 2:5, 1:3] = 1
    times = time_grid(steps, start, shift)
    z = interpolate(DATA, NOISE, times[0])
    found = integrate(curved, z, times, solver, Inpaint(DATA, mask, NOISE))
    kept = mask.expand_as(found) == 0
    assert torch.equal(found[kept], DATA[kept])
    assert not torch.allclose(found[~kept], DATA[~kept])


def test_painting_everything_anew_is_no_inpainting():
    for differential in (False, True):
        everything = Inpaint(DATA, torch.ones(1, 1, 6, 4), NOISE, differential=differential)
        found = integrate(curved, NOISE, time_grid(5), inpaint=everything)
        torch.testing.assert_close(found, integrate(curved, NOISE, time_grid(5)))


@given(st.floats(0.05, 0.95), steps_)
def test_a_soft_mask_mixes_the_picture_with_what_is_drawn(share: float, steps: int):
    """Of a flow that heads for the same picture from everywhere, the end is the mix of that and the kept one."""
    other, soft = recipe("other", DATA.shape, 0), torch.full((1, 1, 6, 4), share)
    found = integrate(lambda z, t: (other - z) / (1 - t), NOISE, time_grid(steps), inpaint=Inpaint(DATA, soft, NOISE))
    torch.testing.assert_close(found, share * other + (1 - share) * DATA, rtol=0, atol=1e-4)


@pytest.mark.parametrize("start", [0.0, 0.5])
def test_a_differential_mask_says_when_painting_begins(start: float):
    mask, times, seen = torch.linspace(0, 1, 24).view(1, 1, 6, 4), time_grid(10, start), []
    inpaint = Inpaint(DATA, mask, NOISE, start, differential=True)

    def velocity(z: Tensor, t: float) -> Tensor:
        seen.append((z - interpolate(DATA, NOISE, t)).abs().amax((0, 1)) < 1e-6)  # still on the path of what is kept
        return torch.ones_like(z)

    found = integrate(velocity, interpolate(DATA, NOISE, start), times, inpaint=inpaint)
    for step, kept in enumerate(seen):
        free_before, free = mask[0, 0] >= 1 - (step - 1) / 10, mask[0, 0] >= 1 - step / 10
        assert kept[~free].all(), step
        assert step == 0 or not kept[free_before].any(), step
    assert torch.equal(found[..., 0, 0], DATA[..., 0, 0])


def test_the_kept_region_is_on_its_own_path_at_every_step():
    seen, mask = [], torch.zeros(1, 1, 6, 4)
    integrate(lambda z, t: seen.append((z, t)) or z, NOISE, time_grid(4), inpaint=Inpaint(DATA, mask, NOISE))
    for z, t in seen:
        torch.testing.assert_close(z, interpolate(DATA, NOISE, t))


# --- the path that training follows -----------------------------------------------------------------------------


@pytest.mark.parametrize("mean", [0.0, -0.8])
def test_times_are_logit_normal(mean: float):
    times = logit_normal(20000, torch.Generator().manual_seed(0), mean)
    assert 0 < times.min() and times.max() < 1
    logits = times.logit()
    assert (logits.mean() - mean).abs() < 0.02 and logits.std() == pytest.approx(1, abs=0.02)
    assert torch.equal(times[:5], logit_normal(20000, torch.Generator().manual_seed(0), mean)[:5])


def test_each_row_is_on_the_path_at_its_own_time():
    times = torch.tensor([0.0, 0.25, 1.0])
    x, noise = (recipe(name, (3, 4, 2, 2), 0) for name in ("x", "noise"))
    found = interpolate(x, noise, times)
    for row, t in enumerate(times.tolist()):
        torch.testing.assert_close(found[row], interpolate(x[row], noise[row], t))
    torch.testing.assert_close(found[0], noise[0], rtol=0, atol=0)
    torch.testing.assert_close(found[2], x[2], rtol=0, atol=0)
