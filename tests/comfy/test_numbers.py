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
