"""JanusFlow as a native CLIP: prompts for the flow, and answers about pictures.

The CLIP owns token embeddings, output head and understanding encoder; the transformer layers belong to the MODEL. To
write text both are loaded, through a clone of the MODEL's patcher, so that every weight has one owner and a LoRA's
strength on one side never leaks into the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...janusflow_core import decoding
from ...janusflow_core.chat import Chat, marks
from ...janusflow_core.checkpoint import Checkpoint, counted, open_checkpoint, verified
from ...janusflow_core.choices import Choice, choice_of, option_scores
from ...janusflow_core.decoding import SamplingOptions
from ...janusflow_core.image import from_tensor, preprocess
from ...janusflow_core.model import JanusFlow
from ...janusflow_core.recall import Recall, go_on
from ...janusflow_core.weights import read_weights
from .compat import CLIP, check_cancelled, cuda_device_context, loading_bar, model_management, new_patcher, ops, utils
from .layers import quick
from .model import BOS, ComfyAttention, is_packed
from .tokens import NAME, Row, TokenizerFacade, Tokens, is_picture

LANGUAGE_MODEL = "diffusion_model.language_model."


class TextModel(JanusFlow):
    """The text half with the call signature of a ComfyUI text encoder."""

    def __init__(
        self, checkpoint: Checkpoint, tokenizer: TokenizerFacade, dtype: torch.dtype, device: Any, packed: bool = False
    ) -> None:
        kind = ops.mixed_precision_ops({}, dtype, full_precision_mm=True) if packed else ops.manual_cast
        super().__init__(checkpoint.config, flow=False, operations=quick(kind), dtype=dtype, device=device)
        self.tokenizer, self.recall = tokenizer, Recall()
        self.dtype, self.dtypes = dtype, {dtype}
        self.execution_device: Any = None

    def set_clip_options(self, options: dict[str, Any]) -> None:
        self.execution_device = options.get("execution_device", self.execution_device)

    def reset_clip_options(self) -> None:
        self.execution_device = None

    def encode_token_weights(self, tokens: Tokens) -> tuple[Tensor, None, dict[str, Any]]:
        """Prompt embeddings (1, L, D) and, beside them, the embedding of BOS: what an emptied prompt turns into."""
        (row,) = tokens[NAME]
        self.config.language.check_drawing(len(self.tokenizer.lay_out(row)), picture=0)
        prompt, _ = self.embed([row], torch.float32)
        bos, _ = self.embed([[(self.tokenizer.core.bos_id, 1.0)]], torch.float32)
        here = model_management.intermediate_device()
        return prompt.to(here), None, {BOS: bos.to(here)}

    def embed(self, rows: Sequence[Row], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Embeddings (B, T, D) of rows of tokens, padded on the left, and where they are real (B, T).

        The pictures of all rows go through the vision encoder together.
        """
        core, device = self.tokenizer.core, self.execution_device
        ids, real = (part.to(device) for part in core.pad_left([self.tokenizer.lay_out(row) for row in rows]))
        pictures = [entry["data"] for row in rows for entry, *_ in row if is_picture(entry)]
        pixels = [preprocess(picture, self.tokenizer.image) for data in pictures for picture in from_tensor(data)]
        features = None
        if pixels:
            features = self.image_features(torch.stack(pixels).to(device, dtype), ComfyAttention({}))
        return self.embed_conversation(ids, core.image_mask(ids) & real, features).to(dtype), real

    def load_sd(self, state_dict: dict[str, Tensor]) -> Any:
        return self.load_state_dict(state_dict, strict=False, assign=getattr(self, "can_assign_sd", False))


class JanusFlowCLIP(CLIP):
    """ComfyUI's CLIP over the text half, with the MODEL's language model at hand for writing."""

    def __init__(self, text: TextModel, patcher: Any, flow_patcher: Any) -> None:
        super().__init__(no_init=True)
        self.cond_stage_model, self.tokenizer = text, text.tokenizer
        self.patcher, self.flow_patcher = patcher, flow_patcher
        self.patcher.is_clip = True
        self.layer_idx, self.use_clip_schedule = None, False
        self.tokenizer_options: dict[str, Any] = {}
        self.apply_hooks_to_conds = None

    def clone(self, disable_dynamic: bool = False) -> JanusFlowCLIP:
        patcher = self.patcher.clone(disable_dynamic=disable_dynamic)
        copy = JanusFlowCLIP(patcher.model, patcher, self.flow_patcher.clone(disable_dynamic=disable_dynamic))
        copy.layer_idx, copy.use_clip_schedule = self.layer_idx, self.use_clip_schedule
        copy.tokenizer_options = self.tokenizer_options.copy()
        copy.apply_hooks_to_conds = self.apply_hooks_to_conds
        return copy

    def get_models(self) -> list[Any]:
        return [self.flow_patcher]

    def add_patches(
        self, patches: dict[Any, Any], strength_patch: float = 1.0, strength_model: float = 1.0
    ) -> list[Any]:
        """A LoRA's strength on the CLIP side also acts on the language model, but only while it writes text."""
        language = {key: value for key, value in patches.items() if _weight_name(key).startswith(LANGUAGE_MODEL)}
        own = self.patcher.add_patches(patches, strength_patch, strength_model)
        return [*own, *self.flow_patcher.add_patches(language, strength_patch, strength_model)]

    def identity(self) -> list[Any]:
        """What decides about its words, as far as JSON can tell: the checkpoint's name, the strengths of patches."""
        patches = [part for patcher in (self.patcher, self.flow_patcher) for part in patcher.patches.values()]
        strengths = sorted({(float(patch[0]), float(patch[2])) for part in patches for patch in part})
        return [Path(self.patcher.cached_patcher_init[1][0]).name, len(patches), *map(list, strengths)]

    def load_model(self, tokens: Any = None) -> Any:
        # Looking up a prompt's embeddings needs one table, which ComfyUI's layers stream: nothing is loaded for it.
        return self.patcher

    def state_dict_for_saving(self) -> dict[str, Tensor]:
        model_management.load_models_gpu([self.patcher])  # core can write int8 of what is loaded only
        return super().state_dict_for_saving()

    def encode_from_tokens(self, tokens: Tokens, return_pooled: Any = False, return_dict: bool = False) -> Any:
        # Where the table is now: moving it for one lookup would cost more than the lookup.
        self.cond_stage_model.set_clip_options({"execution_device": self.patcher.current_loaded_device()})
        prompt, pooled, extra = self.cond_stage_model.encode_token_weights(tokens)
        if return_dict:
            out = {"cond": prompt, "pooled_output": pooled, **extra}
            self.add_hooks_to_dict(out)
            return out
        return (prompt, pooled) if return_pooled else prompt

    def generate(
        self,
        tokens: Tokens,
        do_sample: bool = True,
        max_length: int = 256,
        temperature: float = 1.0,
        top_k: int = 50,
        top_p: float = 0.95,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        presence_penalty: float = 0.0,
        **unused: Any,
    ) -> list[int]:
        """ComfyUI's TextGenerate: the ids of one answer."""
        options = SamplingOptions()
        if do_sample:
            options = SamplingOptions(temperature, top_p, top_k, min_p, repetition_penalty, presence_penalty)
        return self.answer([tokens], max_length, options, [seed or 0])[0]

    def answer(
        self,
        conversations: Sequence[Tokens],
        max_new_tokens: int,
        options: SamplingOptions,
        seeds: Sequence[int],
        on_token: decoding.OnToken | None = None,
        bar: bool = True,
        rules: Sequence[decoding.LogitsRule] = (),
    ) -> list[list[int]]:
        """The ids of the next turn of several conversations, with ComfyUI's cancel button and, with `bar`, its bar.

        As many at once as the free memory holds. `on_token` hears which conversation got which token; `rules` say what
        may be written. Raises ValueError when a conversation does not fit the model's context.
        """
        text, progress, answers = self.cond_stage_model, None, []
        for first, prompt, real in self._batches(conversations, max_new_tokens):
            progress = progress or _Progress(len(conversations), max_new_tokens, on_token, bar)
            answers += decoding.generate(
                *self._parts,
                prompt,
                real,
                eos=text.tokenizer.core.eos_id,
                max_new_tokens=max_new_tokens,
                options=options,
                rules=rules,
                seeds=seeds[first : first + len(prompt)],
                on_token=progress.after(first, len(prompt)),
                attention=ComfyAttention({}),
            )
        return answers

    def reply(
        self,
        chat: Chat,
        max_new_tokens: int,
        options: SamplingOptions,
        seed: int,
        on_token: decoding.OnToken | None = None,
    ) -> str:
        """What the model says next, with ComfyUI's cancel button and bar.

        Of a chat that begins as the last one did, only what follows is read; what was read waits in main memory, as
        long as this CLIP is there. Raises ValueError where nothing is asked, or all of it does not fit the model.
        """
        text, row = self.cond_stage_model, self.cond_stage_model.tokenizer.chat(chat)
        ids, core = text.tokenizer.lay_out(row), text.tokenizer.core
        device, dtype, _ = self._load_both(len(ids), max_new_tokens)
        with cuda_device_context(device):
            said = go_on(
                text.recall,
                (self.patcher.patches_uuid, self.flow_patcher.patches_uuid, dtype),
                marks(ids, chat.pictures, core),
                lambda known: text.embed([text.tokenizer.behind(row, known)], dtype)[0],
                self._parts,
                device=device,
                kept_on=model_management.intermediate_device(),
                eos=core.eos_id,
                max_new_tokens=max_new_tokens,
                options=options,
                seeds=[seed],
                on_token=_Progress(1, max_new_tokens, on_token, True).after(0, 1),
                attention=ComfyAttention({}),
            )
        return core.decode(said)

    def weigh(self, conversations: Sequence[Tokens], answers: Sequence[str]) -> list[Tensor]:
        """log P (O,), in float32 on the CPU, of whole answers (see core's choices) to each of several conversations."""
        core, found = self.cond_stage_model.tokenizer.core, []
        options = [core.answer_ids(answer) for answer in answers]
        for _, prompt, real in self._batches(conversations, sum(map(len, options))):
            check_cancelled()
            found += option_scores(
                *self._parts, prompt, real, options, eos=core.eos_id, attention=ComfyAttention({})
            ).cpu()
        return found

    def choose(self, conversations: Sequence[Tokens], spellings: Mapping[str, Sequence[str]]) -> list[Choice]:
        """One of some answers, each with its spellings, to each of several conversations."""
        texts = [text for written in spellings.values() for text in written]
        return [choice_of(spellings, row) for row in self.weigh(conversations, texts)]

    @property
    def _parts(self) -> tuple[Any, Any, Any]:
        """What decoding knows of the model: embeddings to hidden states, these to logits, ids to embeddings."""
        text = self.cond_stage_model
        return self.flow_patcher.model.diffusion_model.language_model.model, text.logits, text.encode_prompt

    def _batches(self, conversations: Sequence[Tokens], more: int) -> Iterator[tuple[int, Tensor, Tensor]]:
        """As many conversations at once as the free memory holds: the first's number, embeddings, what is real.

        Both halves are loaded, and `more` tokens have room behind each.
        """
        text, rows = self.cond_stage_model, [tokens[NAME][0] for tokens in conversations]
        device, dtype, room = self._load_both(max(len(text.tokenizer.lay_out(row)) for row in rows), more)
        at_once = decoding.fitting(model_management.get_free_memory(device), room)
        with cuda_device_context(device):
            for first in range(0, len(rows), at_once):
                yield first, *text.embed(rows[first : first + at_once], dtype)

    def _load_both(self, longest: int, more: int) -> tuple[torch.device, torch.dtype, int]:
        """Load both halves for conversations of so many tokens and `more`: where, in which numbers, bytes for each."""
        text, device = self.cond_stage_model, self.patcher.load_device
        text.config.language.check_conversation(longest, more)
        dtype = self.flow_patcher.model.get_dtype_inference()
        room = decoding.bytes_a_row(text.config.language, longest + more, dtype)
        model_management.load_models_gpu([self.patcher, self.flow_patcher], memory_required=2 * room)
        text.reset_clip_options()
        text.set_clip_options({"execution_device": device})
        return device, dtype, room


class _Progress:
    """Moves ComfyUI's bar with the longest answer of each batch, stops at the token after a cancel, and passes on."""

    def __init__(self, rows: int, longest: int, on_token: decoding.OnToken | None, bar: bool) -> None:
        self._bar = utils.ProgressBar(rows * longest) if bar else None
        self._longest, self._on_token = longest, on_token

    def after(self, done: int, at_once: int) -> decoding.OnToken:
        """What hears of the tokens of so many conversations, after so many."""
        written = Counter[int]()

        def on_token(row: int, token: int) -> None:
            check_cancelled()
            written[row] += 1
            if self._bar is not None:
                self._bar.update_absolute(done * self._longest + at_once * max(written.values()))
            if self._on_token is not None:
                self._on_token(done + row, token)

        return on_token


def check_clip(clip: Any, node: str) -> None:
    """Raises ValueError, in the name of a node, for a CLIP that is not JanusFlow's."""
    if not isinstance(clip, JanusFlowCLIP):
        raise ValueError(f"{node} needs JanusFlow's CLIP: connect the CLIP output of Load JanusFlow.")


def _weight_name(key: Any) -> str:
    return key if isinstance(key, str) else key[0]


def load_text(path: str, dtype: torch.dtype | None = None, disable_dynamic: bool = False) -> Any:
    """`text_patcher` of a file or folder: what ComfyUI calls when it needs a fresh copy."""
    return text_patcher(open_checkpoint(path), dtype, disable_dynamic)


def text_patcher(checkpoint: Checkpoint, dtype: torch.dtype | None = None, disable_dynamic: bool = False) -> Any:
    """A ModelPatcher around the text half of a checkpoint; raises ValueError for weights that do not fit."""
    if checkpoint.tokenizer is None:
        raise ValueError(
            f"{checkpoint.name} holds no text half: its CLIP must come from the checkpoint it was saved from."
        )
    shapes = verified(checkpoint, "text")
    device, offload = model_management.text_encoder_device(), model_management.text_encoder_offload_device()
    stored = checkpoint.weights.stored("beg_of_und_embed").dtype
    weight_dtype = dtype or (stored if stored in (torch.bfloat16, torch.float32) else torch.bfloat16)
    packed, tokenizer = is_packed(checkpoint, shapes), TokenizerFacade(checkpoint, checkpoint.tokenizer)
    model = TextModel(checkpoint, tokenizer, weight_dtype, offload, packed)
    model_management.archive_model_dtypes(model)
    patcher = new_patcher(model.eval().requires_grad_(False), device, offload, disable_dynamic)
    model.can_assign_sd = patcher.is_dynamic()
    model.load_sd(dict(counted(read_weights(checkpoint.weights, shapes, packed=packed), len(shapes), loading_bar())))
    patcher.cached_patcher_init = (load_text, (str(checkpoint.path), dtype))
    return patcher
