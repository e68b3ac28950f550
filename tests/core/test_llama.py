from copy import deepcopy
from functools import cache

import pytest
import torch
from golden import MODULE, assert_close, recipe
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from janusflow_core.attention import KVCache, left_padded_mask, prefix_mask, rotary, rotate
from janusflow_core.config import LanguageConfig
from janusflow_core.llama import LanguageModel, hidden_after

SHAPES = {
    "multi-head": {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4},
    "grouped": {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "rope_theta": 500000.0,
    },
    "one key head": {
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 4,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "rms_norm_eps": 1e-3,
    },
}
VOCABULARY = 37


@cache
def both(name: str) -> tuple[LanguageModel, LlamaForCausalLM]:
    """Our language model and transformers', with the same weights; shared, not to be changed."""
    config = LanguageConfig.model_validate({**SHAPES[name], "vocab_size": VOCABULARY})
    ours = LanguageModel(config, text=True, layers=True, operations=torch.nn).eval()
    weights = {key: recipe(key, value.shape, 3) for key, value in ours.state_dict().items()}
    ours.load_state_dict(weights)
    theirs = LlamaForCausalLM(
        LlamaConfig(
            **{**config.model_dump(exclude={"rope_theta"}), "rope_theta": config.rope_theta},
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        )
    ).eval()
    theirs.load_state_dict(weights)
    return ours.requires_grad_(False), theirs.requires_grad_(False)


def ids(rows: int, length: int) -> torch.Tensor:
    return torch.randint(VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(length))


def our_logits(model: LanguageModel, tokens: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    positions = (real.long().cumsum(1) - 1).clamp(min=0)
    hidden = model.model(model.model.embed_tokens(tokens), positions, left_padded_mask(real, 0))
    return model.lm_head(hidden)


@pytest.mark.parametrize("name", SHAPES)
def test_equals_transformers_llama(name: str):
    ours, theirs = both(name)
    tokens = ids(2, 19)
    found = our_logits(ours, tokens, torch.ones_like(tokens, dtype=torch.bool))
    assert_close(found, theirs(tokens).logits, MODULE)


@pytest.mark.parametrize("name", SHAPES)
def test_left_padding_equals_transformers_llama(name: str):
    ours, theirs = both(name)
    tokens = ids(3, 17)
    real = torch.arange(17) >= torch.tensor([0, 5, 16])[:, None]
    expected = theirs(tokens, attention_mask=real.long(), position_ids=(real.long().cumsum(1) - 1).clamp(min=0)).logits
    assert_close(our_logits(ours, tokens, real)[real], expected[real], MODULE)


@pytest.mark.parametrize("name", SHAPES)
def test_padding_on_the_left_changes_nothing(name: str):
    ours, _ = both(name)
    tokens = ids(2, 17)
    real = torch.arange(17) >= torch.tensor([0, 6])[:, None]
    padded = our_logits(ours, tokens, real)[1, 6:]
    alone = our_logits(ours, tokens[1:, 6:], torch.ones(1, 11, dtype=torch.bool))[0]
    assert_close(padded, alone, MODULE)


@given(st.sampled_from(list(SHAPES)), st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_cache_equals_full_recompute(name: str, chunks: list[int]):
    ours, _ = both(name)
    total = sum(chunks)
    x, positions = ours.model.embed_tokens(ids(2, total)), torch.arange(total)[None]
    device = torch.device("cpu")
    expected = ours.model(x, positions, prefix_mask([total], total, total, 0, device))
    cache, found, start = KVCache(total), [], 0
    for size in chunks:
        end = start + size
        mask = prefix_mask([total], total, end, start, device)
        found.append(ours.model(x[:, start:end], positions[:, start:end], mask, cache))
        cache.keep(size)
        start = end
    assert_close(torch.cat(found, dim=1), expected, MODULE)


def test_scratch_behind_a_cache_is_forgotten():
    ours, _ = both("grouped")
    x, device = ours.model.embed_tokens(ids(1, 9)), torch.device("cpu")
    cache = KVCache(9)
    ours.model(x[:, :4], torch.arange(4)[None], prefix_mask([4], 4, 4, 0, device), cache)
    cache.keep(4)
    mask, positions = prefix_mask([4], 4, 9, 4, device), torch.arange(4, 9)[None]
    first = ours.model(x[:, 4:], positions, mask, cache)
    ours.model(x[:, 4:].flip(1), positions, mask, cache)
    torch.testing.assert_close(ours.model(x[:, 4:], positions, mask, cache), first, rtol=0, atol=0)
    assert cache.length == 4


@given(st.integers(0, 16000), st.integers(0, 16000), st.integers(0, 300))
def test_rotation_depends_on_distance_alone(query: int, key: int, shift: int):
    q, k = recipe("q", (1, 1, 1, 16), 0), recipe("k", (1, 1, 1, 16), 0)

    def product(offset: int) -> torch.Tensor:
        turned = [rotate(x, *rotary(torch.tensor([[at + offset]]), 16, 10000.0)) for x, at in ((q, query), (k, key))]
        return (turned[0] * turned[1]).sum()

    torch.testing.assert_close(product(shift), product(0), rtol=0, atol=0.02)


def test_rotary_angles_keep_float32_under_bfloat16_weights():
    model, far, seen = deepcopy(both("multi-head")[0]).bfloat16(), torch.tensor([[700]]), []
    hook = model.model.layers[0].register_forward_pre_hook(lambda module, args: seen.extend(args[1]))
    model.model(model.model.embed_tokens(ids(1, 1)), far, None)
    hook.remove()
    index = torch.arange(0, 12, 2, dtype=torch.float64)
    angle = 700 * 10000.0 ** (-index / 12)
    cos, sin = torch.cat((angle.cos(), angle.cos())), torch.cat((-angle.sin(), angle.sin()))
    torch.testing.assert_close(seen[0][0, 0, 0].double(), cos, rtol=0, atol=1e-4)
    torch.testing.assert_close(seen[1][0, 0, 0].double(), sin, rtol=0, atol=1e-4)


def test_hidden_after_a_layer_is_what_a_shorter_model_computes():
    model, x = both("grouped")[0].model, both("grouped")[0].model.embed_tokens(ids(2, 7))
    positions, mask = torch.arange(7)[None], prefix_mask([7], 7, 7, 0, torch.device("cpu"))
    for layer in range(1, len(model.layers) + 1):
        with hidden_after(model, layer) as hidden:
            model(x, positions, mask)
        shorter = deepcopy(model)
        shorter.layers, shorter.norm = shorter.layers[:layer], torch.nn.Identity()
        torch.testing.assert_close(hidden, [shorter(x, positions, mask)], rtol=0, atol=0)
    assert not any(part._forward_hooks for part in model.layers)
