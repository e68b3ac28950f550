"""When and how guidance counts, in ComfyUI's own sampling: for any guider that weighs two branches by its cfg."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...janusflow_core.guidance import Guidance
from .compat import WrappersMP


def with_guidance(model: Any, guidance: Guidance) -> Any:
    """A clone of the MODEL whose runs are guided like this; plain guidance leaves it as it is."""

    def in_its_interval(executor: Any, x: Tensor, sigma: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        guides = guidance.guides(1.0 - float(sigma.max()))
        executor.class_obj.set_cfg(guidance.weight if guides else 1.0)  # at 1 ComfyUI leaves the second branch out
        return executor(x, sigma, *args, **kwargs)

    def combined(args: dict[str, Any]) -> Tensor:
        """ComfyUI's branches are what noise is left in `input`: x - picture."""
        if args["input_uncond"] is None:
            return args["cond"]
        sigma = args["sigma"]
        left = sigma[:, None, None, None]
        cond, uncond = (-args[branch] / left for branch in ("cond", "uncond"))
        return -left * guidance.combine(args["input"], 1.0 - sigma, cond, uncond)

    if guidance == Guidance(guidance.weight):
        return model
    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "janusflow_guidance", in_its_interval)
    if guidance.zero_star or guidance.rescale:
        model.set_model_sampler_cfg_function(combined)
    return model
