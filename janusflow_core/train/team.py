"""The processes that train together, as accelerate or torchrun starts them: one or many, on one machine or on more."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..device import best_device
from .machine import world
from .recipe import Recipe


class Team:
    """This process among those that train together; its tracker writes TensorBoard's files below `out`."""

    def __init__(self, out: Path) -> None:
        try:
            from accelerate import Accelerator
        except ImportError as error:
            raise ImportError('training by a recipe needs accelerate: pip install "accelerate>=1.2"') from error
        tracker = "tensorboard" if find_spec("tensorboard") else None
        # Its mixed precision stays off: what a number type is used for is the recipe's to say.
        cpu = best_device().type == "cpu"  # else processes on CPUs alone would not find one another
        self.accelerator = Accelerator(cpu=cpu, mixed_precision="no", log_with=tracker, project_dir=out)
        self.device: torch.device = self.accelerator.device

    def joined(self, module: nn.Module, layers: Iterable[nn.Module], shard: bool, bf16: bool) -> nn.Module:
        """The module on this process's device, with all gradients: repeated (DDP) or shared by layers (FSDP2)."""
        if world() == 1:
            return module.to(self.device)
        return shared(module.to(self.device), layers, bf16) if shard else self.accelerator.prepare_model(module)

    def accumulating(self, module: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """Inside it gradients are only passed on if the batch is the `last` of its step."""
        if isinstance(module, nn.parallel.DistributedDataParallel):
            return nullcontext() if last else module.no_sync()
        if hasattr(module, "set_requires_gradient_sync"):
            module.set_requires_gradient_sync(last)  # type: ignore[operator]
        return nullcontext()

    def begin_log(self, recipe: Recipe) -> None:
        """Begin a run of the tracker's, if there is one."""
        told = recipe.model_dump(mode="json")
        plain = {key: value if isinstance(value, (int, float, str)) else str(value) for key, value in told.items()}
        self.accelerator.init_trackers("log", plain)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Tell the tracker the values of a step."""
        self.accelerator.log({**values}, step=step)

    def end(self) -> None:
        """Write what the tracker still holds; the processes part."""
        self.accelerator.end_training()


def shared(module: nn.Module, layers: Iterable[nn.Module], bf16: bool) -> nn.Module:
    """The module with its weights divided among the processes, those that are frozen as well."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    types = (torch.bfloat16, torch.float32) if bf16 else (None, None)  # of weights, of gradients on their way
    policy = MixedPrecisionPolicy(*types, cast_forward_inputs=False)
    for layer in layers:
        fully_shard(layer, mp_policy=policy)
    fully_shard(module, mp_policy=policy)
    return module


@contextmanager
def whole_weights(module: nn.Module) -> Iterator[None]:
    """Inside it every process has all weights of a shared module, to use it in other ways than for training."""
    parts: list[Any] = [part for part in module.modules() if hasattr(part, "unshard")]
    for part in parts:
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()


def compute_again(layers: Iterable[nn.Module]) -> None:
    """Let layers keep their input alone, and compute the rest again on the way back."""
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
