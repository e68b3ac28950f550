"""What JanusFlow is stored in and computes in inside ComfyUI on a CPU."""

import pytest
import torch

BF16, FP32, FP8 = torch.bfloat16, torch.float32, torch.float8_e4m3fn


@pytest.mark.parametrize(
    "asked, faster, forced, expected",
    [
        ("default", True, False, (BF16, BF16)),
        ("default", True, True, (FP32, FP32)),
        ("default", False, False, (FP32, FP32)),
        ("bf16", True, False, (BF16, BF16)),
        ("bf16", False, False, (BF16, FP32)),
        ("fp32", True, False, (FP32, FP32)),
        ("fp8_e4m3fn", True, False, (FP8, BF16)),
        ("fp8_e4m3fn", False, False, (FP8, FP32)),
    ],
)
def test_a_cpu_computes_in_bf16_where_that_is_faster(pack, monkeypatch, asked, faster, forced, expected):
    compat = pack.module("nodes.native.compat")
    monkeypatch.setattr(compat, "best_dtype", lambda device: BF16 if faster else FP32)
    monkeypatch.setattr(compat.model_management.args, "fp32_unet", forced)
    model, clip, _ = pack.node("load")("janusflow-tiny", "none", asked)
    stored = model.model.diffusion_model.language_model.model.layers[0].mlp.up_proj.weight.dtype
    assert (stored, model.model.get_dtype_inference()) == expected
    assert clip.cond_stage_model.language_model.lm_head.weight.dtype == expected[1]


@pytest.mark.parametrize(("bf16", "instead"), [(False, FP32), (True, BF16)])
def test_fp16_from_the_command_line_is_not_taken(pack, monkeypatch, caplog, bf16, instead):
    """As on a card without bf16 and on one with it."""
    compat = pack.module("nodes.native.compat")
    management = compat.model_management
    monkeypatch.setattr(compat, "best_dtype", lambda device: FP32)
    monkeypatch.setattr(management, "should_use_bf16", lambda *args, **kwargs: bf16)
    monkeypatch.setattr(management, "should_use_fp16", lambda *args, **kwargs: True)
    for flag in ("fp16_unet", "fp16_vae", "fp16_text_enc", "force_fp16"):
        monkeypatch.setattr(management.args, flag, True)
    model, clip, vae = pack.node("load")("janusflow-tiny", "from checkpoint", "default")
    weights = [*model.model.parameters(), *clip.cond_stage_model.parameters(), *vae.first_stage_model.parameters()]
    assert torch.float16 not in {weight.dtype for weight in weights}
    assert (model.model.get_dtype_inference(), vae.vae_dtype) == (instead, instead)
    told = [record.getMessage() for record in caplog.records if "overflows in float16" in record.getMessage()]
    assert sorted(told) == [
        f"{what} overflows in float16: computing it in {str(instead).removeprefix('torch.')} instead."
        for what in ("JanusFlow's language model", "SDXL's kind of VAE")
    ]
