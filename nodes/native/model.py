"""JanusFlow as a native MODEL: the flow half of the core model behind ComfyUI's BaseModel.

ComfyUI counts noise down (sigma 1 to 0) and predicts noise - x; JanusFlow counts data up (t 0 to 1) and predicts
x - noise. So t = 1 - sigma, and the velocity changes its sign.

CONDITIONING payload: [embeddings (1, L, D), {"janusflow_bos": embedding of BOS (1, 1, D), ...}]. A row that holds BOS
alone is the unconditional branch; its time token stands where the positive prompt's does.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ...janusflow_core.checkpoint import Checkpoint, counted, open_checkpoint, verified
from ...janusflow_core.model import JanusFlow, Prefix, flow_tokens
from ...janusflow_core.weights import json_tensor, read_weights
from .compat import (
    KEEPS_INT8,
    SDXL,
    BaseModel,
    CONDRegular,
    ModelType,
    SupportedModel,
    WrapperExecutor,
    WrappersMP,
    cpu_in_bf16,
    get_all_wrappers,
    instead_of_fp16,
    loading_bar,
    model_management,
    new_patcher,
    optimized_attention,
    pad_to_patch_size,
)
from .layers import quick
from .refusals import NoUNet, check_latents, check_numbers, check_patches

log = logging.getLogger(__name__)

BOS = "janusflow_bos"
TIME_POSITION = "janusflow_time_position"
CACHE = "janusflow_prefix_cache"
SIGMA_TABLE = 277200  # divisible by every number of steps up to 12, and by 14, 15, 20, 24, 25, 28, 30, 40, 50, 100


class PromptCond(CONDRegular):
    """Prompt embeddings (B, L, D): rows of different lengths share a batch, padded on the right."""

    def can_concat(self, other: CONDRegular) -> bool:
        return self.cond.shape[2] == other.cond.shape[2] and self.cond.device == other.cond.device

    def concat(self, others: list[CONDRegular]) -> Tensor:
        rows = [row for cond in (self, *others) for row in cond.cond]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


class RowNumbers(CONDRegular):
    """One integer for each row of a batch, as a list: ComfyUI would turn a tensor into floats."""

    def process_cond(self, batch_size: int, **kwargs: Any) -> RowNumbers:
        return RowNumbers([self.cond[row % len(self.cond)] for row in range(batch_size)])

    def can_concat(self, other: CONDRegular) -> bool:
        return True

    def concat(self, others: list[CONDRegular]) -> list[int]:
        return [number for cond in (self, *others) for number in cond.cond]

    def size(self) -> list[int]:
        return [1]


class PrefixCache:
    """Keys and values of the prompts of one sampling run.

    Lives in the run's transformer_options and dies with them. An object, because dicts in there are copied each call.
    """

    def __init__(self) -> None:
        self._prefixes: dict[Any, Prefix] = {}

    @torch.compiler.disable  # TorchCompileModel has it compiled without looking what is in the cache
    def prefill(self, key: Any, model: JanusFlow, prefix: Prefix, tokens: int, attention: ComfyAttention) -> Prefix:
        if key not in self._prefixes:
            replaced = "optimized_attention_override" in attention.options  # by what may tell rows by their places
            self._prefixes[key] = model.prefill(prefix, tokens, attention, share=not replaced)
        return self._prefixes[key]


class ComfyAttention:
    """ComfyUI's attention, patches included, in the form the core calls: boolean masks become additive ones."""

    def __init__(self, transformer_options: dict[str, Any]) -> None:
        self.options = transformer_options
        self._mask: Tensor | None = None
        self._bias: Tensor | None = None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        return optimized_attention(
            q, k, v, q.shape[1], mask=self._additive(mask, q.dtype), skip_reshape=True, transformer_options=self.options
        )

    def _additive(self, mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        if mask is None:
            return None
        if mask is not self._mask:  # the same mask serves every layer of a forward pass
            self._mask = mask
            # Finite, because kernels that go through the keys in chunks make NaN of a chunk that is all -inf.
            self._bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(
                ~mask, torch.finfo(dtype).min / 2
            )
        return self._bias


class FlowModel(JanusFlow):
    """The flow half with the call signature of a ComfyUI diffusion model."""

    def __init__(
        self, config: Any, dtype: torch.dtype | None = None, device: Any = None, operations: Any = None, **unused: Any
    ) -> None:
        super().__init__(config, text=False, operations=quick(operations), dtype=dtype, device=device)
        self.dtype, self.in_channels = dtype, config.flow.latent_channels

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor | None = None,
        control: Any = None,
        transformer_options: dict[str, Any] = {},  # noqa: B006 - as ComfyUI declares it
        **kwargs: Any,
    ) -> Tensor:
        wrappers = get_all_wrappers(WrappersMP.DIFFUSION_MODEL, transformer_options)
        executor = WrapperExecutor.new_class_executor(self._forward, self, wrappers)
        x = x.clone() if wrappers else x  # EasyCache adds to it, and in float32 it is the sampler's own
        return executor.execute(x, timesteps, context, control, transformer_options, **kwargs)

    def _forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        control: Any,
        transformer_options: dict[str, Any],
        prompt_lengths: list[int],
        time_positions: list[int],
        **kwargs: Any,
    ) -> Tensor:
        height, width = x.shape[-2:]
        x = pad_to_patch_size(x, (2, 2))
        attention = ComfyAttention(transformer_options)
        prefix = Prefix(context, prompt_lengths, time_positions)
        cache = transformer_options.get(CACHE)
        if cache is not None:
            key = (tuple(transformer_options.get("uuids", ())), tuple(x.shape), tuple(context.shape), x.device)
            prefix = cache.prefill(key, self, prefix, flow_tokens(*x.shape[-2:]), attention)
        v = self.velocity(x, 1.0 - timesteps.float() / 1000.0, prefix, attention)
        return -v[..., :height, :width]


class JanusFlowModel(BaseModel):
    """What ComfyUI samples, patches, offloads and saves."""

    def __init__(self, model_config: SupportedModel, device: Any = None) -> None:
        super().__init__(model_config, ModelType.FLOW, device=device, unet_model=FlowModel)
        # ComfyUI's schedulers pick from a table of 1000 sigmas, so that 30 steps miss the uniform grid by up to 7e-4.
        self.model_sampling.set_parameters(shift=1.0, timesteps=SIGMA_TABLE, multiplier=1000)

    def extra_conds(self, **kwargs: Any) -> dict[str, Any]:
        out = super().extra_conds(**kwargs)
        prompt = kwargs.get("cross_attn")
        if prompt is None:
            raise ValueError(
                "JanusFlow needs a prompt: connect Encode Prompt, or CLIP Text Encode with JanusFlow's CLIP."
            )
        noise = kwargs["noise"]
        check_latents(noise, self.model_config.core.flow.latent_channels)
        width = self.model_config.core.language.hidden_size
        if prompt.ndim != 3 or prompt.shape[-1] != width:
            raise ValueError(
                f"The conditioning has shape {tuple(prompt.shape)}, JanusFlow expects (1, tokens, {width}): "
                "encode the prompt with the CLIP of the same Load JanusFlow node."
            )
        start = kwargs.get(TIME_POSITION, prompt.shape[1])
        height, width = kwargs.get("area", noise.shape[-2:])[:2]
        self.model_config.core.language.check_drawing(start, flow_tokens(height, width))
        out["c_crossattn"] = PromptCond(prompt)
        out["prompt_lengths"] = RowNumbers([prompt.shape[1]])
        out["time_positions"] = RowNumbers([start])
        return out

    def _apply_model(
        self,
        x: Tensor,
        t: Tensor,
        c_concat: Any = None,
        c_crossattn: Any = None,
        control: Any = None,
        transformer_options: dict[str, Any] = {},  # noqa: B006 - as ComfyUI declares it
        **kwargs: Any,
    ) -> Tensor:
        hooked = self.current_patcher is not None and self.current_patcher.current_hooks is not None
        if hooked or torch.is_grad_enabled() or model_management.in_training:
            # Hooks swap weights between steps, training needs the prompt's gradient: both outdate cached keys.
            transformer_options = {key: value for key, value in transformer_options.items() if key != CACHE}
        return super()._apply_model(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)


class SupportedJanusFlow(SupportedModel):
    """ComfyUI's description of the architecture, and the way its weights are named in saved files."""

    unet_extra_config: dict[str, Any] = {}
    sampling_settings = {"shift": 1.0, "multiplier": 1000}
    latent_format = SDXL
    supported_inference_dtypes = [torch.bfloat16, torch.float32]  # the language model overflows in float16
    memory_usage_factor = 1.0
    text_encoder_key_prefix = [""]
    vae_key_prefix = ["vae."]

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__({"image_model": "janusflow", "config": checkpoint.config})
        self.unet_config = NoUNet(self.unet_config)
        self.core, self.drawing = checkpoint.config, checkpoint.drawing
        if self.drawing.preview is not None:  # a VAE of its own: SDXL's factors and TAESD would show false colors
            self.latent_format.latent_rgb_factors_reshape = self.drawing.preview.decode
            self.latent_format.latent_rgb_factors = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
            self.latent_format.latent_rgb_factors_bias = None
            self.latent_format.taesd_decoder_name = None

    def inpaint_model(self) -> bool:
        return False

    def get_model(self, state_dict: Any, prefix: str = "", device: Any = None) -> JanusFlowModel:
        return JanusFlowModel(self, device=device)

    def process_unet_state_dict_for_saving(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        # ComfyUI writes its own metadata, so these travel among the tensors.
        parts = {"config": self.core.to_dict(), "drawing_config": self.drawing.to_json_dict()}
        return {**state_dict, **{name: json_tensor(json.dumps(values)) for name, values in parts.items()}}


def is_unconditional(cond: dict[str, Any]) -> bool:
    """True for a prompt of BOS alone, and for one that ConditioningZeroOut has emptied: both mean no prompt."""
    prompt = cond.get("cross_attn")
    return BOS in cond and prompt is not None and (prompt.shape[1] == 1 or not torch.count_nonzero(prompt))


def prepare_sampling(executor: Any, *args: Any, **kwargs: Any) -> Tensor:
    """Before each sampling run: place the unconditional rows behind the positive prompt, and give the run its cache."""
    guider = executor.class_obj
    positive = [c["cross_attn"].shape[1] for c in guider.conds.get("positive", []) if not is_unconditional(c)]
    for cond in (cond for conds in guider.conds.values() for cond in conds):
        if is_unconditional(cond):
            cond["cross_attn"] = cond[BOS].to(cond["cross_attn"])
            cond[TIME_POSITION] = max(positive, default=1)
    options = guider.model_options.setdefault("transformer_options", {})
    check_patches(options)
    options[CACHE] = PrefixCache()
    samples = executor(*args, **kwargs)
    check_numbers(samples)
    return samples


def load_flow(path: str, dtype: torch.dtype | None = None, disable_dynamic: bool = False) -> Any:
    """`flow_patcher` of a file or folder: what ComfyUI calls when it needs a fresh copy."""
    return flow_patcher(open_checkpoint(path), dtype, disable_dynamic)


def flow_patcher(checkpoint: Checkpoint, dtype: torch.dtype | None = None, disable_dynamic: bool = False) -> Any:
    """A ModelPatcher around the flow half of a checkpoint; raises ValueError for weights that do not fit.

    Quantised layers stay so unless a `dtype` is asked for.
    """
    supported, shapes = SupportedJanusFlow(checkpoint), verified(checkpoint, "flow")
    device, packed = model_management.get_torch_device(), dtype is None and is_packed(checkpoint, shapes)
    stored, cast = _numbers(checkpoint, shapes, supported.supported_inference_dtypes, dtype, device)
    if packed:  # every other weight lies in what is computed in
        supported.quant_config, stored, cast = {"mixed_ops": True}, cast or stored, cast or stored
    supported.set_inference_dtype(stored, cast)
    model = supported.get_model({})
    patcher = new_patcher(model, device, model_management.unet_offload_device(), disable_dynamic)
    weights = dict(counted(read_weights(checkpoint.weights, shapes, packed=packed), len(shapes), loading_bar()))
    model.load_model_weights(weights, assign=patcher.is_dynamic())
    patcher.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "janusflow", prepare_sampling)
    patcher.cached_patcher_init = (load_flow, (str(checkpoint.path), dtype))
    return patcher


def is_packed(checkpoint: Checkpoint, keys: Iterable[str]) -> bool:
    """Whether one of these weights is quantised, and this ComfyUI computes with what it is stored in."""
    weights = checkpoint.weights
    quantized = [key for key in keys if weights.is_quantized(key)]
    if not KEEPS_INT8 and any(weights.stored(key).dtype == torch.int8 for key in quantized):
        log.warning("This ComfyUI has no layers in int8: they take twice the memory; update it to 0.27.0 or newer.")
        return False
    return bool(quantized)


def _numbers(
    checkpoint: Checkpoint, shapes: Any, supported: list[torch.dtype], dtype: torch.dtype | None, device: torch.device
) -> tuple[torch.dtype, torch.dtype | None]:
    """What weights are stored in, and what they are cast to for computing, if it is something else."""
    stored = dtype or model_management.unet_dtype(
        model_params=sum(torch.Size(shape).numel() for shape in shapes.values()),
        supported_dtypes=supported,
        weight_dtype=checkpoint.dtype,
    )
    stored = instead_of_fp16(stored, device, "JanusFlow's language model")
    if not cpu_in_bf16(device):
        return stored, model_management.unet_manual_cast(stored, device, supported)
    stored = torch.bfloat16 if dtype is None and stored == torch.float32 else stored
    return stored, None if stored in supported else torch.bfloat16
