"""Every mistake that is easy to make when rebuilding JanusFlow, planted on purpose, must fail a golden comparison."""

from collections.abc import Callable
from functools import partial
from math import log
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden import (
    GOLDEN,
    MODULE,
    PICTURES,
    TRAJECTORY,
    VELOCITY,
    conversation_inputs,
    new_pipeline,
    pixels,
    relative,
    tensors,
    trajectory,
)
from PIL import Image
from pytest import MonkeyPatch
from torch import Tensor, nn

from janusflow_core import image, llama, sampling, uvit, vit
from janusflow_core.attention import left_padded_mask
from janusflow_core.guidance import Guidance
from janusflow_core.model import Prefix
from janusflow_core.pipeline import JanusFlowPipeline

Plant = Callable[[JanusFlowPipeline, MonkeyPatch], None]
Comparison = Callable[[JanusFlowPipeline], float]  # error divided by the tolerance: above 1 fails

# --- comparisons ------------------------------------------------------------------------------------------------


def velocities(pipe: JanusFlowPipeline) -> float:
    """Both branches of the first step of the shortest guided case."""
    golden, errors = tensors("t2i_n2_cfg2"), []
    for weight, branch in ((1.0, "cond"), (0.0, "uncond")):
        velocity = pipe.guided_velocity([PICTURES["n2_cfg2"]["prompt"]], None, Guidance(weight), golden["z0"].shape)
        errors.append(relative(velocity(golden["z0"], 0.0), golden[f"v_{branch}_first"]))
    return max(errors) / VELOCITY


def latents(pipe: JanusFlowPipeline) -> float:
    return relative(trajectory(pipe, "n2_cfg2")[-1], tensors("t2i_n2_cfg2")["z"][-1]) / TRAJECTORY


def encoder(pipe: JanusFlowPipeline) -> float:
    golden = tensors("components")
    return relative(pipe.model.vision_gen_enc_model(golden["enc.z"], golden["enc.t"])[0], golden["enc.x_emb"]) / MODULE


def decoder(pipe: JanusFlowPipeline) -> float:
    golden = tensors("components")
    found = pipe.model.vision_gen_dec_model(golden["dec.x"], golden["enc.x_emb"], golden["enc.t_emb"])
    return relative(found, golden["dec.v"]) / MODULE


def norm(name: str, module: str) -> Comparison:
    def compare(pipe: JanusFlowPipeline) -> float:
        found = pipe.model.get_submodule(module)(tensors("components")[f"norm.{name}.in"])
        return relative(found, tensors("components")[f"norm.{name}.out"]) / MODULE

    return compare


def features(pipe: JanusFlowPipeline) -> float:
    found = pipe.model.vision_und_enc_model(pixels("square384"))[0]
    return relative(found, tensors("vision_features")["square384.vision_features"]) / MODULE


def logits(pipe: JanusFlowPipeline) -> float:
    golden = tensors("und_square")
    _, real, embeddings = conversation_inputs(pipe, ["square"])
    hidden = pipe.model.language_model.model(embeddings, (real.cumsum(1) - 1), left_padded_mask(real, 0))
    return relative(pipe.model.logits(hidden)[0, golden["positions"]], golden["prefill_logits_at"]) / MODULE


def preprocessed(name: str) -> Comparison:
    def compare(pipe: JanusFlowPipeline) -> float:
        found = image.resize_and_pad(Image.open(GOLDEN / "images" / f"{name}.png"), pipe.image_config)
        expected = Image.open(GOLDEN / "golden" / "preprocessed_u8" / f"main__{name}.png")
        return 2.0 * (not np.array_equal(np.asarray(found), np.asarray(expected)))

    return compare


def saved_picture(pipe: JanusFlowPipeline) -> float:
    """Our rounding against the demo's truncation: a float picture to 8 bits."""
    grid = (torch.arange(256) + 0.6) / 256
    (found,) = image.from_tensor(grid.reshape(1, 16, 16, 1))
    return 2.0 * (not torch.equal(torch.from_numpy(np.array(found)).flatten(), (grid * 255).round().byte()))


# --- how to plant them ------------------------------------------------------------------------------------------


def edit(change: Callable[[JanusFlowPipeline], None]) -> Plant:
    """A mistake in one loaded model."""
    return lambda pipe, patch: change(pipe)


def replace(owner: object, **attributes: object) -> Plant:
    """A mistake in the code."""

    def plant(pipe: JanusFlowPipeline, patch: MonkeyPatch) -> None:
        for name, value in attributes.items():
            patch.setattr(owner, name, value, raising=False)  # a built-in has no name in the module yet

    return plant


def functional(**attributes: object) -> SimpleNamespace:
    """torch.nn.functional with other functions under some names."""
    return SimpleNamespace(**{**vars(F), **attributes})


def skip(name: str) -> Plant:
    """Leave a module out."""
    return edit(lambda pipe: pipe.model.set_submodule(name, nn.Identity()))


def epsilon(module: str, value: float) -> Plant:
    return edit(lambda pipe: setattr(pipe.model.get_submodule(module), "eps", value))


def conv_block(film: str = "after", activation: Callable[[Tensor], Tensor] = F.silu) -> Callable[..., Tensor]:
    """ConvNextBlock.forward rewritten, with the modulation `after` or `before` the residual sum."""

    def forward(self: uvit.ConvNextBlock, x: Tensor, t_emb: Tensor) -> Tensor:
        h = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        h = self.channelwise_norm(F.gelu(self.channelwise_linear_1(h)))
        h = self.channelwise_linear_2(h).permute(0, 3, 1, 2)
        scale, shift = self.cond_embeds_mapper(activation(t_emb))[:, :, None, None].chunk(2, dim=1)
        return (x + h) * (1 + scale) + shift if film == "after" else x + h * (1 + scale) + shift

    return forward


def swap_scale_and_shift(pipe: JanusFlowPipeline) -> None:
    for name, weight in pipe.model.named_parameters():
        if "cond_embeds_mapper" in name:
            weight.copy_(torch.cat(weight.chunk(2)[::-1]))


def wrong_skip_order(self: uvit.FlowDecoder, x: Tensor, skip: Tensor, t_emb: Tensor) -> Tensor:
    x = self.input_norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return self.out_convs[0](self.mid_block(torch.cat((skip, x), dim=1), t_emb))


def grn_without_one(self: uvit.GlobalResponseNorm, x: Tensor) -> Tensor:
    energy = x.square().sum(dim=(1, 2), keepdim=True).sqrt()
    return self.bias + self.weight * (energy / (energy.mean(dim=-1, keepdim=True) + 1e-6)) * x


def patch_major_shuffle(x: Tensor, factor: int) -> Tensor:
    """Pixel shuffle that reads channels as (2, 2, C) instead of (C, 2, 2)."""
    parts = x.unflatten(1, (factor, factor, -1)).permute(0, 3, 4, 1, 5, 2)  # (B, C, h, 2, w, 2)
    return parts.flatten(4, 5).flatten(2, 3)


def sines_first(t: Tensor, size: int) -> Tensor:
    return uvit_sinusoid(t, size).roll(size // 2, dims=1)


def shifted_frequencies(t: Tensor, size: int) -> Tensor:
    half = size // 2
    angle = t[:, None] * torch.exp(-log(10000.0) * torch.arange(half) / (half - 1))
    return torch.cat((angle.cos(), angle.sin()), dim=-1)


uvit_sinusoid, right_grid, right_rotary = uvit.sinusoid, sampling.time_grid, llama.rotary


def late_grid(steps: int, start: float = 0.0, shift: float = 1.0) -> list[float]:
    return [t + 1 / steps for t in right_grid(steps, start, shift)]


def unscaled_time(pipe: JanusFlowPipeline) -> None:
    pipe.model.vision_gen_enc_model.register_forward_pre_hook(lambda module, args: (args[0], args[1] / 1000))


def column_major(pipe: JanusFlowPipeline) -> None:
    """Picture tokens column by column through the language model, and back."""

    def turned(x: Tensor) -> Tensor:
        return x.unflatten(1, (24, 24)).transpose(1, 2).flatten(1, 2)

    pipe.model.vision_gen_enc_aligner.register_forward_pre_hook(lambda module, args: (turned(args[0]),))
    pipe.model.vision_gen_dec_aligner.register_forward_hook(lambda module, args, out: turned(out))


def adjacent_rotary(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    cos, sin = (x[..., head_dim // 2 :].repeat_interleave(2, dim=-1) for x in right_rotary(positions, head_dim, theta))
    return cos, sin


def adjacent_rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embeddings that pair feature 2i with 2i + 1."""
    turned = torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)
    return x * cos + turned * sin


def visible_padding(pipe: JanusFlowPipeline, patch: MonkeyPatch) -> None:
    """Unconditional rows that see BOS and padding, as long as the prompt."""
    pad = pipe.model.encode_prompt(torch.tensor([pipe.tokenizer.pad_id]))

    def join(rows: list[Tensor], starts: list[int], length: int) -> Prefix:
        full = [torch.cat((row, pad.expand(start - len(row), -1))) for row, start in zip(rows, starts, strict=True)]
        return Prefix(torch.stack(full), starts, starts)

    patch.setattr(Prefix, "join", join)


def hidden_bos(pipe: JanusFlowPipeline, patch: MonkeyPatch) -> None:
    join = Prefix.join

    def without_bos(rows: list[Tensor], starts: list[int], length: int) -> Prefix:
        prefix = join(rows, starts, length)
        prefix.lengths = [0 if length == 1 else length for length in prefix.lengths]
        return prefix

    patch.setattr(Prefix, "join", without_bos)


def compact_positions(pipe: JanusFlowPipeline, patch: MonkeyPatch) -> None:
    join = Prefix.join
    patch.setattr(Prefix, "join", lambda rows, starts, length: join(rows, [len(row) for row in rows], length))


def kept_last_token(pipe: JanusFlowPipeline, patch: MonkeyPatch) -> None:
    ids, start_tag = pipe.tokenizer.generation_ids, pipe.tokenizer.image_start_id
    patch.setattr(pipe.tokenizer, "generation_ids", lambda prompt: [*ids(prompt), start_tag])


def plain_start_tag(pipe: JanusFlowPipeline) -> None:
    """The start tag's own embedding where begin-of-understanding belongs."""
    pipe.model.beg_of_und_embed.copy_(pipe.model.encode_prompt(torch.tensor([pipe.tokenizer.image_start_id])))


def resampling(method: Image.Resampling) -> Plant:
    """Pillow's `resize` with another filter, whatever the caller asks for."""
    original = Image.Image.resize
    return replace(Image.Image, resize=lambda self, size, resample=None: original(self, size, method))


def background(value: int) -> Plant:
    return replace(image.ImageConfig, background_color=(value,) * 3)


tanh_gelu = functional(gelu=partial(F.gelu, approximate="tanh"))
LLAMA, VIT = "language_model.model", "vision_und_enc_model.vision_tower"
ENCODER, DECODER = "vision_gen_enc_model.mid_block.res_blocks", "vision_gen_dec_model"

MISTAKES: dict[str, tuple[Plant, Comparison]] = {
    "tanh GELU in the flow encoder": (replace(uvit, F=tanh_gelu), encoder),
    "tanh GELU in the flow decoder": (replace(uvit, F=tanh_gelu), decoder),
    "tanh GELU in SigLIP": (replace(vit, F=tanh_gelu), features),
    "RMSNorm epsilon of the language model": (
        epsilon(f"{LLAMA}.layers.0.input_layernorm", 1e-5),
        norm("rms_llm", f"{LLAMA}.layers.0.input_layernorm"),
    ),
    "RMSNorm epsilon of the final norm": (epsilon(f"{LLAMA}.norm", 1e-5), norm("rms_llm_final", f"{LLAMA}.norm")),
    "RMSNorm epsilon of the flow encoder": (epsilon(f"{ENCODER}.0.norm", 1e-5), norm("rms_uvit", f"{ENCODER}.0.norm")),
    "RMSNorm epsilon of the decoder's input": (
        epsilon(f"{DECODER}.input_norm", 1e-5),
        norm("rms_dec_input", f"{DECODER}.input_norm"),
    ),
    "RMSNorm epsilon before the decoder": (
        epsilon("vision_gen_dec_aligner_norm", 1e-5),
        norm("rms_dec_aligner", "vision_gen_dec_aligner_norm"),
    ),
    "LayerNorm epsilon in SigLIP": (epsilon(f"{VIT}.blocks.0.norm1", 1e-5), norm("ln_vit", f"{VIT}.blocks.0.norm1")),
    "LayerNorm epsilon of SigLIP's last norm": (epsilon(f"{VIT}.norm", 1e-5), norm("ln_vit_final", f"{VIT}.norm")),
    "sines before cosines": (replace(uvit, sinusoid=sines_first), velocities),
    "shifted frequencies": (replace(uvit, sinusoid=shifted_frequencies), latents),
    "no norm before the decoder": (skip("vision_gen_dec_aligner_norm"), velocities),
    "no final norm of the language model": (skip(f"{LLAMA}.norm"), velocities),
    "no input norm in the decoder": (skip(f"{DECODER}.input_norm"), velocities),
    "GRN without the residual 1": (replace(uvit.GlobalResponseNorm, forward=grn_without_one), velocities),
    "scale and shift swapped": (edit(swap_scale_and_shift), velocities),
    "no SiLU on the time": (replace(uvit.ConvNextBlock, forward=conv_block(activation=lambda x: x)), velocities),
    "modulation before the residual sum": (replace(uvit.ConvNextBlock, forward=conv_block("before")), velocities),
    "skip before the language model's features": (replace(uvit.FlowDecoder, forward=wrong_skip_order), velocities),
    "patch-major pixel shuffle": (replace(uvit, F=functional(pixel_shuffle=patch_major_shuffle)), velocities),
    "time not times 1000": (edit(unscaled_time), latents),
    "time one step late": (replace(sampling, time_grid=late_grid), latents),
    "unconditional prompt not masked": (visible_padding, velocities),
    "BOS masked too": (hidden_bos, velocities),
    "last prompt token kept": (kept_last_token, velocities),
    "picture tokens column by column": (edit(column_major), velocities),
    "rotary pairs interleaved": (replace(llama, rotary=adjacent_rotary, rotate=adjacent_rotate), velocities),
    "unconditional positions without a gap": (compact_positions, velocities),
    "start tag not replaced": (edit(plain_start_tag), logits),
    "no final norm in SigLIP": (skip(f"{VIT}.norm"), features),
    "bilinear resize": (resampling(Image.Resampling.BILINEAR), preprocessed("rgba")),
    "Lanczos resize": (resampling(Image.Resampling.LANCZOS), preprocessed("rgba")),
    "rounded sizes": (replace(image, int=round), preprocessed("wide")),
    "background 128": (background(128), preprocessed("wide")),
    "truncated 8-bit picture": (replace(image, np=SimpleNamespace(**{**vars(np), "rint": np.floor})), saved_picture),
}


@pytest.mark.parametrize(("plant", "compare"), MISTAKES.values(), ids=MISTAKES)
def test_mistake_is_caught(plant: Plant, compare: Comparison, monkeypatch: MonkeyPatch):
    pipe = new_pipeline()
    assert compare(pipe) <= 1
    plant(pipe, monkeypatch)
    assert compare(pipe) > 1


def test_rewritten_block_without_a_mistake_passes(monkeypatch: MonkeyPatch):
    pipe = new_pipeline()
    monkeypatch.setattr(uvit.ConvNextBlock, "forward", conv_block())
    assert velocities(pipe) <= 1
