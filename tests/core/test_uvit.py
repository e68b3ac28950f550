import pytest
import torch
from golden import MODULE, assert_close, pipeline, tensors

from janusflow_core.uvit import GlobalResponseNorm, sinusoid

NORMS = {
    "rms_uvit": "vision_gen_enc_model.mid_block.res_blocks.0.norm",
    "rms_dec_input": "vision_gen_dec_model.input_norm",
    "rms_llm": "language_model.model.layers.0.input_layernorm",
    "rms_llm_final": "language_model.model.norm",
    "rms_dec_aligner": "vision_gen_dec_aligner_norm",
    "ln_vit": "vision_und_enc_model.vision_tower.blocks.0.norm1",
    "ln_vit_final": "vision_und_enc_model.vision_tower.norm",
    "grn": "vision_gen_dec_model.mid_block.res_blocks.0.channelwise_norm",
}


@pytest.mark.parametrize("name", NORMS)
def test_norm_at_the_scale_of_its_epsilon_equals_golden(name: str):
    golden, norm = tensors("components"), pipeline().model.get_submodule(NORMS[name])
    assert_close(norm(golden[f"norm.{name}.in"]), golden[f"norm.{name}.out"], MODULE)


def test_global_response_norm_equals_golden():
    golden, norm = tensors("components"), pipeline().model.get_submodule(NORMS["grn"])
    assert_close(norm(golden["grn.in_nhwc"]), golden["grn.out"], MODULE)


@pytest.mark.parametrize("part", ["time", "enc"])
def test_time_embedding_equals_golden(part: str):
    golden, encoder = tensors("components"), pipeline().model.vision_gen_enc_model
    features = sinusoid(golden[f"{part}.t"], encoder.channels)
    assert_close(features, golden[f"{part}.time_proj" if part == "enc" else "time.proj"], MODULE)
    assert_close(encoder.time_embed(features), golden[f"{part}.t_emb"], MODULE)


def test_encoder_equals_golden_stage_by_stage():
    golden, encoder = tensors("components"), pipeline().model.vision_gen_enc_model
    x = encoder.in_conv(golden["enc.z"])
    assert_close(x[:1], golden["enc.in_conv"], MODULE)
    for index, block in enumerate(encoder.mid_block.res_blocks):
        x = block(x, golden["enc.t_emb"])
        assert_close(x[:1], golden[f"enc.res{index}"], MODULE)
    features, t_emb = encoder(golden["enc.z"], golden["enc.t"])
    assert_close(features, golden["enc.x_emb"], MODULE)
    assert_close(t_emb, golden["enc.t_emb"], MODULE)


def test_decoder_equals_golden_stage_by_stage():
    golden, decoder = tensors("components"), pipeline().model.vision_gen_dec_model
    normed = decoder.input_norm(golden["dec.x"].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    x = torch.cat((normed, golden["enc.x_emb"]), dim=1)
    for index, block in enumerate(decoder.mid_block.res_blocks):
        x = block(x, golden["enc.t_emb"])
        assert_close(x[:1], golden[f"dec.res{index}"], MODULE)
    assert_close(decoder(golden["dec.x"], golden["enc.x_emb"], golden["enc.t_emb"]), golden["dec.v"], MODULE)


@pytest.mark.parametrize("t", [33.25, 333.3333, 966.6667])
def test_sinusoid_is_float32_whatever_the_times_are(t: float):
    found = sinusoid(torch.tensor([t], dtype=torch.bfloat16), 16)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, sinusoid(torch.tensor([t]).bfloat16().float(), 16))


def test_a_dead_channel_keeps_the_gradient_finite():
    """The L2 norm of a channel that is zero everywhere has no slope; written as a root of squares it gives NaN."""
    norm = GlobalResponseNorm(3)
    torch.nn.init.ones_(norm.weight)
    torch.nn.init.zeros_(norm.bias)
    x = torch.randn(1, 4, 4, 3, generator=torch.Generator().manual_seed(0))
    x[..., 1] = 0
    x.requires_grad_()
    norm(x).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()
