"""Load JanusFlow: one checkpoint to MODEL, CLIP and VAE."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..janusflow_core.autoencoder import Autoencoder, load_vae_files
from ..janusflow_core.checkpoint import Checkpoint, open_checkpoint
from .native.clip import JanusFlowCLIP, text_patcher
from .native.compat import VAE, folder_paths, instead_of_fp16, io, model_management
from .native.files import checkpoint_names, checkpoint_path, files_state
from .native.model import flow_patcher

FROM_CHECKPOINT, NO_VAE = "from checkpoint", "none"
VAE_DTYPES = [torch.bfloat16, torch.float32]
WEIGHT_DTYPES = {"default": None, "fp32": torch.float32, "bf16": torch.bfloat16, "fp8_e4m3fn": torch.float8_e4m3fn}


class JanusFlowLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="JanusFlowLoader",
            display_name="Load JanusFlow",
            category="JanusFlow",
            description="Loads a JanusFlow checkpoint as MODEL (draws), CLIP (reads prompts and pictures) and VAE.",
            search_aliases=["janus", "checkpoint", "unified model", "loader"],
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=checkpoint_names(),
                    tooltip="janusflow-tiny ships with this pack. JanusFlow-1.3B (4.1 GB, DeepSeek Model License): run "
                    "`python start.py download` in this pack's folder, or put all files of "
                    "huggingface.co/deepseek-ai/JanusFlow-1.3B into models/janusflow/JanusFlow-1.3B. Files of "
                    "models/checkpoints and models/diffusion_models are listed too.",
                ),
                io.Combo.Input(
                    "vae",
                    options=[FROM_CHECKPOINT, NO_VAE, *folder_paths.get_filename_list("vae")],
                    default=FROM_CHECKPOINT,
                    tooltip="JanusFlow-1.3B brings no VAE: choose any SDXL VAE of models/vae. The same download brings "
                    "sdxl_vae.safetensors (335 MB, MIT) of huggingface.co/stabilityai/sdxl-vae. A checkpoint that has "
                    "its own, like janusflow-tiny, needs exactly that one.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(WEIGHT_DTYPES),
                    default="default",
                    advanced=True,
                    tooltip="How the weights are stored. default: bf16 where the device computes in it, else fp32; "
                    "a file of `janusflow convert --quantize` stays in its eight bits. fp8_e4m3fn halves the memory of "
                    "the drawing half, but loses more quality than such a file.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="MODEL", tooltip="For Flow Sampler, KSampler and every other sampler."),
                io.Clip.Output(
                    display_name="CLIP",
                    tooltip="For Encode Prompt, CLIP Text Encode, Describe Image and Generate Text.",
                ),
                io.Vae.Output(display_name="VAE", tooltip="Between pictures and SDXL latents."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str, vae: str = FROM_CHECKPOINT, **kwargs: Any) -> int:
        # A number only: ComfyUI writes this value into every picture, and a path would tell the user's name.
        try:
            path, own_vae = checkpoint_path(checkpoint), folder_paths.get_full_path("vae", vae)
            return files_state([path, *path.rglob("*"), *([Path(own_vae)] if own_vae else [])])
        except OSError:
            return 0  # must not raise; execute says what is missing

    @classmethod
    def execute(cls, checkpoint: str, vae: str = FROM_CHECKPOINT, weight_dtype: str = "default") -> io.NodeOutput:
        opened = open_checkpoint(checkpoint_path(checkpoint))
        own_vae = _load_vae(opened, vae)
        model = flow_patcher(opened, WEIGHT_DTYPES[weight_dtype])
        if not opened.has_text:  # ModelSave writes the flow half alone
            return io.NodeOutput(model, None, own_vae)
        # A CPU would take longer to cast a weight for every token than to use it.
        on_cpu = model_management.is_device_cpu(model_management.text_encoder_device())
        text = text_patcher(opened, model.model.get_dtype_inference() if on_cpu else None)
        return io.NodeOutput(model, JanusFlowCLIP(text.model, text, model.clone()), own_vae)


def _load_vae(checkpoint: Checkpoint, choice: str) -> Any:
    """A native VAE: the checkpoint's own, a file of models/vae, or None where the graph does without."""
    if choice == NO_VAE:
        return None
    if choice != FROM_CHECKPOINT:
        chosen = load_vae_files(Path(folder_paths.get_full_path_or_raise("vae", choice)))
        return native_vae(chosen.for_model(checkpoint.config.flow.latent_channels))
    own = checkpoint.read_vae()
    if own is None:
        raise ValueError(
            f"{checkpoint.name} brings no VAE: choose an SDXL VAE in the field `vae`, or `none` if the graph makes no "
            "pictures. `python start.py download` in this pack's folder puts sdxl_vae.safetensors (335 MB, MIT) of "
            "https://huggingface.co/stabilityai/sdxl-vae into models/vae."
        )
    return native_vae(own)


def native_vae(vae: Autoencoder) -> Any:
    """ComfyUI's VAE over an AutoencoderKL of any width that its own autoencoder can have."""
    widths, groups = vae.config.block_out_channels, vae.config.norm_num_groups
    if groups != 32 or any(width % widths[0] for width in widths):
        raise ValueError(
            f"This VAE has {groups} norm groups and widths {list(widths)}, but ComfyUI's autoencoder 32 groups and "
            "multiples of the first width: use another VAE, or the janusflow library."
        )
    shape = {
        "double_z": True,
        "z_channels": vae.config.latent_channels,
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "ch": widths[0],
        "ch_mult": [width // widths[0] for width in widths],
        "attn_resolutions": [],
        "dropout": 0.0,
        "num_res_blocks": vae.config.layers_per_block,
    }
    params = {"ddconfig": shape, "embed_dim": vae.config.latent_channels}
    device = model_management.vae_device()
    dtype = instead_of_fp16(model_management.vae_dtype(device, VAE_DTYPES), device, "SDXL's kind of VAE")
    native = VAE(sd=dict(vae.weights), config={"params": params}, dtype=dtype)
    native.throw_exception_if_invalid()
    return native
