"""config.json in and out, and the parameter counts that it stands for."""

from collections import Counter
from typing import Any

import pytest
import torch
from golden import MANIFEST, config, micro_dict, pool_weights, read_json
from hypothesis import given
from hypothesis import strategies as st

from janusflow_core.config import JanusFlowConfig
from janusflow_core.model import JanusFlow


def shapes_of(shapes: JanusFlowConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of an official file: the model's, and the attention pool that is dropped."""
    model = JanusFlow(shapes, device="meta").state_dict()
    return {key: tuple(value.shape) for key, value in model.items()} | pool_weights(shapes)


@pytest.mark.parametrize(
    ("name", "listing"),
    [
        ("official_config.json", read_json("official_state_dict.json")["state_dict"]),
        ("wide", read_json("wide/state_dict.json")),
    ],
    ids=["official", "wide"],
)
def test_config_gives_the_tensors_of_the_reference_class(name: str, listing: dict[str, list[int]]):
    assert shapes_of(config(name)) == {key: tuple(shape) for key, shape in listing.items()}


def parameters_by_part(name: str) -> Counter[str]:
    count: Counter[str] = Counter()
    for key, shape in shapes_of(config(name)).items():
        count[key.split(".")[0]] += torch.Size(shape).numel()
    return count


def test_parameters_of_the_recorded_model_by_part():
    assert parameters_by_part("tiny") == MANIFEST["model"]["by_part"]
    assert len(shapes_of(config("tiny"))) == MANIFEST["model"]["keys"]


def test_parameters_of_the_official_model_by_part():
    """As in the published checkpoint: 4.09 GB in bfloat16."""
    count = parameters_by_part("official_config.json")
    assert count == {
        "language_model": 1_652_656_128,
        "vision_und_enc_model": 316_283_904,
        "vision_und_enc_aligner": 2_099_200,
        "beg_of_und_embed": 2_048,
        "vision_gen_enc_model": 21_614_336,
        "vision_gen_enc_aligner": 1_574_912,
        "vision_gen_dec_model": 50_561_296,
        "vision_gen_dec_aligner_norm": 2_048,
        "vision_gen_dec_aligner": 1_573_632,
    }
    assert count.total() == 2_046_367_504


@pytest.mark.parametrize("name", ["official_config.json", "tiny", "wide"])
def test_golden_configs_survive_a_round_trip(name: str):
    assert JanusFlowConfig.from_dict(config(name).to_dict()) == config(name)


def test_defaults_of_the_official_config():
    official = config("official_config.json")
    assert (official.language.rms_norm_eps, official.language.rope_theta) == (1e-6, 10000.0)
    assert official.language.num_key_value_heads == 16
    assert (official.vision.width, official.vision.layers, official.vision.grid) == (1024, 24, 24)
    assert official.torch_dtype == "bfloat16"


heads = st.integers(1, 6)


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    """Any config.json that can be built."""
    data, number = micro_dict(), st.integers(1, 8)
    shared, groups, size = draw(heads), draw(number), 2 * draw(number)
    width, patch = draw(heads), draw(number)
    data["language_config"] = {
        "hidden_size": shared * groups * size,
        "num_attention_heads": shared * groups,
        "num_key_value_heads": shared,
        "intermediate_size": draw(number),
        "num_hidden_layers": draw(number),
        "vocab_size": draw(number),
        "max_position_embeddings": draw(number),
        "rms_norm_eps": draw(st.floats(1e-9, 1e-3)),
        "rope_theta": draw(st.floats(1, 1e7)),
    }
    layers = draw(number)
    data["vision_und_enc_config"]["params"] |= {
        "image_size": patch * draw(number),
        "patch_size": patch,
        "width": width * draw(number),
        "heads": width,
        "layers": layers,
        "select_layer": -draw(st.integers(1, layers)),
        "mlp_ratio": draw(st.floats(0.5, 8)),
    }
    channels, epsilon, bias = draw(number), draw(st.floats(1e-9, 1e-3)), draw(st.booleans())
    for part in ("vision_gen_enc_config", "vision_gen_dec_config"):
        data[part]["params"] |= {
            "block_out_channels": [channels],
            "norm_eps": epsilon,
            "use_bias": bias,
            "layers_in_middle": draw(st.integers(0, 4)),
        }
    return {**data, "torch_dtype": draw(st.sampled_from(["float32", "bfloat16"]))}


@given(configs())
def test_any_config_survives_a_round_trip(data: dict[str, Any]):
    shapes = JanusFlowConfig.from_dict(data)
    assert JanusFlowConfig.from_dict(shapes.to_dict()) == shapes
    assert shapes.language.hidden_size == data["language_config"]["hidden_size"]
    assert shapes.vision.mlp_ratio == data["vision_und_enc_config"]["params"]["mlp_ratio"]
    assert shapes.flow.decoder_layers == data["vision_gen_dec_config"]["params"]["layers_in_middle"]


def changed(path: str, value: Any = None) -> dict[str, Any]:
    """The micro config with one value replaced, or left out without one."""
    *parents, last = path.split(".")
    data = part = micro_dict()
    for name in parents:
        part = part[name]
    part.pop(last, None)
    if value is not None:
        part[last] = value
    return data


UND, ENC, DEC = (f"vision_{part}_config.params" for part in ("und_enc", "gen_enc", "gen_dec"))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (changed("language_config"), ["language_config is missing"]),
        (changed("vision_gen_dec_config"), ["vision_gen_dec_config is missing"]),
        (changed("vision_und_enc_config.params"), ["vision_und_enc_config.params is missing"]),
        (changed("language_config.hidden_size"), ["LanguageConfig.hidden_size", "required"]),
        (changed("language_config.hidden_size", "96"), ["hidden_size", "'96'"]),
        (changed("language_config.hidden_size", 30), ["hidden_size 30", "even multiple of 4 heads"]),
        (changed("language_config.num_key_value_heads", 3), ["4 heads", "3 key/value heads"]),
        (changed("language_config.vocab_size", -1), ["vocab_size", "greater than 0", "-1"]),
        (changed("language_config.rope_scaling", {"factor": 2}), ["rope_scaling", "factor", "None"]),
        (changed("language_config.attention_bias", True), ["attention_bias", "True", "False"]),
        (changed("language_config.hidden_act", "gelu"), ["hidden_act", "'gelu'", "'silu'"]),
        (changed("language_config.tie_word_embeddings", True), ["tie_word_embeddings", "True", "False"]),
        (changed(f"{UND}.image_size", 40), ["image_size 40", "patch_size 16"]),
        (changed(f"{UND}.heads", 3), ["width 16", "3 heads"]),
        (changed(f"{UND}.width"), ["model_name 'siglip_tiny_patch16_384' is unknown", "siglip_large_patch16_384"]),
        (changed(f"{UND}.select_layer", -4), ["select_layer -4", "2 layers"]),
        (changed(f"{ENC}.kernel_size", 3), ["vision_gen_enc_config.kernel_size", "3", "2"]),
        (changed(f"{DEC}.upsamples", 2), ["vision_gen_dec_config.upsamples", "2", "1"]),
        (changed(f"{ENC}.block_out_channels", [8, 16]), ["block_out_channels", "[8, 16]", "[8]"]),
        (changed(f"{DEC}.block_out_channels", [16]), ["block_out_channels", "[8]", "[16]"]),
    ],
    ids=lambda value: "" if isinstance(value, dict) else " ".join(value),
)
def test_what_cannot_be_built_is_refused_in_one_sentence(data: dict[str, Any], words: list[str]):
    with pytest.raises(ValueError) as error:
        JanusFlowConfig.from_dict(data, "folder/config.json")
    message = str(error.value)
    assert all(word in message for word in ["folder/config.json", *words]), message
    assert "\n" not in message


def test_config_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        config("tiny").language.hidden_size = 1
