"""Every ComfyUI internal that the pack touches, imported here and nowhere else.

When ComfyUI renames one of them, this is the file that fails to import, and its line names what is gone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import comfy.model_management as model_management
import comfy.model_patcher as model_patcher
import comfy.ops as ops
import comfy.sample as sample
import comfy.samplers as samplers
import comfy.utils as utils
import folder_paths
import latent_preview
import torch
from comfy.conds import CONDRegular
from comfy.latent_formats import SDXL
from comfy.ldm.common_dit import pad_to_patch_size
from comfy.ldm.modules.attention import optimized_attention
from comfy.model_base import BaseModel, ModelType
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers
from comfy.quant_ops import QUANT_ALGOS
from comfy.sd import CLIP, VAE
from comfy.supported_models_base import BASE as SupportedModel
from comfy_api.latest import ComfyExtension, io, ui
from server import PromptServer

from ...janusflow_core.device import best_dtype

__all__ = [
    "BaseModel",
    "CLIP",
    "CONDRegular",
    "ComfyExtension",
    "KEEPS_INT8",
    "ModelType",
    "SDXL",
    "SupportedModel",
    "VAE",
    "WrapperExecutor",
    "WrappersMP",
    "check_cancelled",
    "cpu_in_bf16",
    "cuda_device_context",
    "folder_paths",
    "fresh_clone",
    "get_all_wrappers",
    "instead_of_fp16",
    "io",
    "latent_preview",
    "loading_bar",
    "model_management",
    "model_patcher",
    "new_patcher",
    "ops",
    "optimized_attention",
    "pad_to_patch_size",
    "sample",
    "samplers",
    "show_on_node",
    "ui",
    "utils",
]

log = logging.getLogger(__name__)
check_cancelled = model_management.throw_exception_if_processing_interrupted


def _cuda_device_context(device: torch.device) -> Any:
    """Makes this CUDA device the current one for a while; nothing where it is none."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


# Layers in int8 came after 0.24.1, by 0.27.0: before, what they stand for is computed with.
KEEPS_INT8 = "int8_tensorwise" in QUANT_ALGOS
# Missing in 0.18.2, not needed since 0.24.1.
cuda_device_context = getattr(model_management, "cuda_device_context", _cuda_device_context)


def cpu_in_bf16(device: torch.device) -> bool:
    """Whether this is a CPU that was measured to be faster in bfloat16, and fp32 is not asked for on the command line.

    ComfyUI itself computes in float32 on every CPU.
    """
    asked = model_management.FORCE_FP32 or model_management.args.fp32_unet
    return model_management.is_device_cpu(device) and not asked and best_dtype(device) == torch.bfloat16


def instead_of_fp16(dtype: torch.dtype, device: torch.device, what: str) -> torch.dtype:
    """The dtype, or for float16, which a command line may force and which `what` overflows in, one that holds it."""
    if dtype != torch.float16:
        return dtype
    bf16 = model_management.should_use_bf16(device) or cpu_in_bf16(device)
    log.warning("%s overflows in float16: computing it in %s instead.", what, "bfloat16" if bf16 else "float32")
    return torch.bfloat16 if bf16 else torch.float32


def new_patcher(model, load_device, offload_device, disable_dynamic: bool = False):
    """A ModelPatcher of the kind this server uses; main.py rebinds the class at start, so it is looked up late."""
    kind = model_patcher.ModelPatcher if disable_dynamic else model_patcher.CoreModelPatcher
    return kind(model, load_device=load_device, offload_device=offload_device)


def fresh_clone(patcher: Any) -> Any:
    """A clone with all patches over weights that are read from the checkpoint anew, without dynamic memory."""
    # Since 0.27.0 clone(disable_dynamic=True, force_deepcopy=True) does the same; 0.24.1 has no force_deepcopy.
    load, arguments = patcher.cached_patcher_init
    return patcher.clone(True, load(*arguments, disable_dynamic=True).get_clone_model_override())


def loading_bar() -> Callable[[int, int], None]:
    """Told how many of how many tensors are read: moves the node's progress bar, and stops after a cancel."""
    bar = utils.ProgressBar(1)

    def on_progress(done: int, total: int) -> None:
        check_cancelled()
        bar.update_absolute(done, total)

    return on_progress


def show_on_node(text: str, hidden: Any) -> None:
    """Show a text on the node with these hidden values, in the editor; nothing where a script runs it."""
    server = getattr(PromptServer, "instance", None)
    if server is not None and hidden is not None:
        server.send_progress_text(text, hidden.unique_id)
