"""The language model: a Llama whose modules carry the checkpoint's names.

B batch, T query positions, S key positions, D hidden size, H heads, K head size.
`operations` supplies the layers (torch.nn, or ComfyUI's own) and `attention` the kernel, so that the same
classes serve as a library and under ComfyUI's memory management.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .attention import Attention, KVCache, rotary, rotate, sdpa
from .config import LanguageConfig


class SelfAttention(nn.Module):
    def __init__(self, config: LanguageConfig, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        kv_size = self.kv_heads * self.head_dim
        self.q_proj = operations.Linear(config.hidden_size, config.hidden_size, bias=False, **factory)
        self.k_proj = operations.Linear(config.hidden_size, kv_size, bias=False, **factory)
        self.v_proj = operations.Linear(config.hidden_size, kv_size, bias=False, **factory)
        self.o_proj = operations.Linear(config.hidden_size, config.hidden_size, bias=False, **factory)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        mask: Tensor | None,
        layer: int,
        cache: KVCache | None,
        attention: Attention,
    ) -> Tensor:
        q = rotate(self._heads(self.q_proj(x), self.heads), *rope)  # (B, H, T, K)
        k = rotate(self._heads(self.k_proj(x), self.kv_heads), *rope)
        v = self._heads(self.v_proj(x), self.kv_heads)
        if cache is not None:
            k, v = cache.extend(layer, k, v)  # (B, H, S, K)
        if self.kv_heads != self.heads:
            k, v = (part.repeat_interleave(self.heads // self.kv_heads, dim=1) for part in (k, v))
        return self.o_proj(attention(q, k, v, mask))

    def _heads(self, x: Tensor, heads: int) -> Tensor:
        return x.view(x.shape[0], x.shape[1], heads, self.head_dim).transpose(1, 2)


class MLP(nn.Module):
    def __init__(self, config: LanguageConfig, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.gate_proj = operations.Linear(config.hidden_size, config.intermediate_size, bias=False, **factory)
        self.up_proj = operations.Linear(config.hidden_size, config.intermediate_size, bias=False, **factory)
        self.down_proj = operations.Linear(config.intermediate_size, config.hidden_size, bias=False, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, config: LanguageConfig, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.input_layernorm = operations.RMSNorm(config.hidden_size, eps=config.rms_norm_eps, **factory)
        self.self_attn = SelfAttention(config, operations, **factory)
        self.post_attention_layernorm = operations.RMSNorm(config.hidden_size, eps=config.rms_norm_eps, **factory)
        self.mlp = MLP(config, operations, **factory)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        mask: Tensor | None,
        layer: int,
        cache: KVCache | None,
        attention: Attention,
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rope, mask, layer, cache, attention)
        return x + self.mlp(self.post_attention_layernorm(x))


class Backbone(nn.Module):
    """The transformer itself. `embeddings` and `layers` can be left out where another module owns those weights."""

    def __init__(
        self, config: LanguageConfig, *, embeddings: bool, layers: bool, operations: Any, **factory: Any
    ) -> None:
        super().__init__()
        self.config = config
        if embeddings:
            self.embed_tokens = operations.Embedding(config.vocab_size, config.hidden_size, **factory)
        if layers:
            self.layers = nn.ModuleList(Layer(config, operations, **factory) for _ in range(config.num_hidden_layers))
            self.norm = operations.RMSNorm(config.hidden_size, eps=config.rms_norm_eps, **factory)

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        mask: Tensor | None,
        cache: KVCache | None = None,
        attention: Attention = sdpa,
    ) -> Tensor:
        """Hidden states (B, T, D), after the final norm, of embeddings `x` (B, T, D) at integer `positions` (B, T).

        `mask` is boolean, (B or 1, 1, T, S), True where a query may look. With a `cache`, S counts its kept tokens
        before the T new ones.
        """
        rope = rotary(positions, self.config.head_dim, self.config.rope_theta)
        for index, layer in enumerate(self.layers):
            x = layer(x, rope, mask, index, cache, attention)
        return self.norm(x)


class LanguageModel(nn.Module):
    """Token embeddings and output head (`text`), transformer layers (`layers`), or both, under the official names."""

    def __init__(self, config: LanguageConfig, *, text: bool, layers: bool, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.model = Backbone(config, embeddings=text, layers=layers, operations=operations, **factory)
        if text:
            self.lm_head = operations.Linear(config.hidden_size, config.vocab_size, bias=False, **factory)


@contextmanager
def hidden_after(backbone: Backbone, layer: int) -> Iterator[list[Tensor]]:
    """Collects the hidden states (B, T, D) after the `layer`-th layer, counted from 1, of each forward pass inside.

    By a hook, so that it sees what any caller of the backbone computes, ComfyUI's samplers included.
    """
    hidden: list[Tensor] = []

    def collect(module: nn.Module, args: Any, output: Tensor) -> None:
        hidden.append(output)

    hook = backbone.layers[layer - 1].register_forward_hook(collect)
    try:
        yield hidden
    finally:
        hook.remove()
