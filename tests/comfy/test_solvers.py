"""The library's solvers beside ComfyUI's samplers, on the same velocity: a field that needs no model."""

import pytest
import torch
from golden import curved, recipe
from torch import Tensor

from janusflow_core.sampling import integrate, time_grid

# ours, ComfyUI's function and what makes it the same
PAIRS = [
    ("euler", "sample_euler", {}),
    ("heun", "sample_heun", {}),
    ("dpmpp_2m", "sample_dpmpp_2m", {}),
    ("ab2", "sample_ipndm_v", {"max_order": 2}),
]
NOISE = recipe("noise", (2, 4, 6, 4), 0)


def denoised(z: Tensor, sigma: Tensor, **_: object) -> Tensor:
    """What ComfyUI's samplers ask a model: the picture that this velocity heads for, at sigma = 1 - t."""
    return z + sigma[0] * curved(z, 1.0 - sigma[0].item())


@pytest.mark.parametrize(("steps", "start", "shift"), [(1, 0.0, 1.0), (2, 0.0, 1.0), (12, 0.0, 1.0), (9, 0.4, 3.0)])
@pytest.mark.parametrize(("solver", "name", "how"), PAIRS)
def test_solvers_equal_comfyui(pack, solver, name, how, steps, start, shift):
    from comfy.k_diffusion import sampling

    times = time_grid(steps, start, shift)
    sigmas = torch.tensor([1.0 - t for t in times])
    theirs = getattr(sampling, name)(denoised, NOISE.clone(), sigmas, disable=True, **how)
    torch.testing.assert_close(integrate(curved, NOISE, times, solver), theirs, rtol=2e-5, atol=2e-5)
