"""The other ways: transformers' Llama on our weights, and the authors' way of drawing with it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..attention import left_padded_mask
from ..config import LanguageConfig
from ..llama import LanguageModel
from ..model import JanusFlow


def transformers_llama(model: LanguageModel, config: LanguageConfig) -> Any:
    """transformers' Llama that shares our weights; raises ImportError that says how to get it."""
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError as error:
        raise ImportError('the benchmark compares with transformers: pip install "transformers>=4.50.3"') from error
    own = {**config.model_dump(), "bos_token_id": None, "eos_token_id": None, "tie_word_embeddings": False}
    weights = model.state_dict()
    with torch.device("meta"):
        peer = LlamaForCausalLM(LlamaConfig(**own))
    peer.model.rotary_emb = type(peer.model.rotary_emb)(peer.config).to(next(iter(weights.values())).device)
    peer.load_state_dict(weights, assign=True, strict=hasattr(model, "lm_head"))  # what only draws has no words
    return peer.eval().requires_grad_(False)


class AuthorsWay:
    """One step of the demo's loop (demo/app_janusflow.py) on our weights: its prompts are read again in every step, at
    their full length in both branches, and the flow's state has the weights' number type.

    With transformers' Llama and torch's own layers, as there, or with `ours`: the same way in our layers.
    """

    def __init__(self, model: JanusFlow, ours: bool = False) -> None:
        self.hands, self.llama = model, None
        if not ours:
            with torch.device("meta"):
                self.hands = JanusFlow(model.config, text=False, operations=nn).eval().requires_grad_(False)
            self.hands.load_state_dict(model.state_dict(), assign=True)
            self.llama = transformers_llama(model.language_model, model.config.language).model

    @torch.no_grad()
    def step(self, z: Tensor, t: float, dt: float, prompt: Tensor, seen: Tensor, weight: float) -> Tensor:
        """The next state (B, 4, h, w) of `z` at time `t`, with prompts (2 B, L, D) of which 1 in `seen` (2 B, L) is
        visible, and this guidance."""
        dtype, hands = prompt.dtype, self.hands
        times = torch.full((2 * len(z),), 1000.0 * t, device=z.device).to(dtype)
        features, t_emb = hands.vision_gen_enc_model(torch.cat((z, z)).to(dtype), times)
        picture = hands.vision_gen_enc_aligner(features.flatten(2).transpose(1, 2))
        hidden = self._read(torch.cat((prompt, t_emb[:, None], picture), dim=1), seen)[:, -picture.shape[1] :]
        hidden = hands.vision_gen_dec_aligner(hands.vision_gen_dec_aligner_norm(hidden))
        grid = hidden.transpose(1, 2).unflatten(2, features.shape[2:])
        cond, uncond = hands.vision_gen_dec_model(grid, features, t_emb).chunk(2)
        return z + dt * (weight * cond - (weight - 1.0) * uncond)

    def _read(self, tokens: Tensor, seen: Tensor) -> Tensor:
        rows, length = tokens.shape[:2]
        real = nn.functional.pad(seen, (0, length - seen.shape[1]), value=1)
        if self.llama is not None:
            return self.llama(inputs_embeds=tokens, attention_mask=real, use_cache=True).last_hidden_state
        positions = torch.arange(length, device=tokens.device).expand(rows, -1)
        return self.hands.language_model.model(tokens, positions, left_padded_mask(real.bool(), 0))
