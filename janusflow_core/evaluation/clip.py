"""CLIP score: how near pictures are to their prompts, as a CLIP of transformers sees both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..bulk.batches import chunks, opened
from ..device import best_device
from ..image import open_image
from ..values import printable, shown

Similarity = Callable[[Sequence[str], Sequence[Image.Image]], Tensor]  # prompts, their pictures -> cosines (N,)
OnProgress = Callable[[int, int], None]  # (pairs done, of how many); may raise to cancel


@dataclass(frozen=True)
class ClipScore:
    """The mean of 100 cosines of `count` pairs, -100 to 100, and its standard error, NaN for one pair."""

    mean: float
    error: float
    count: int


def clip_score(
    pairs: Sequence[tuple[str, Path]],
    model: Path,
    *,
    device: torch.device | None = None,
    batch: int = 32,
    on_progress: OnProgress | None = None,
) -> ClipScore:
    """The score of prompts with their picture files, `model` a folder for `similarity`; cosines below 0 count too.

    Raises ValueError for no pairs, and what `similarity` and `open_image` raise.
    """
    if not pairs:
        raise ValueError("got no prompts with pictures, a CLIP score needs one or more: check where they are listed")
    compare, found = similarity(model, device), []
    for read in opened(chunks(pairs, batch), lambda pair: open_image(pair[1])):
        pictures = []
        for _, picture in read:
            if isinstance(picture, Exception):  # without it this would be the score of other prompts
                raise picture
            pictures.append(picture)
        found.extend(compare([prompt for (prompt, _), _ in read], pictures).tolist())
        if on_progress is not None:
            on_progress(len(found), len(pairs))
    return _score(100 * torch.tensor(found, dtype=torch.float64))


def similarity(model: Path, device: torch.device | None = None) -> Similarity:
    """Cosines, -1 to 1, of prompts and pictures, by a CLIP in a local folder; nothing is downloaded.

    It holds what `save_pretrained` of CLIPModel and CLIPProcessor writes, weights in safetensors. What of a prompt is
    beyond the model's length, 77 tokens, is cut off. Raises ImportError, FileNotFoundError, or ValueError with one
    sentence.
    """
    network, processor = _load(model)
    network = network.to(device or best_device(), torch.float32).eval()
    longest = network.config.text_config.max_position_embeddings

    @torch.inference_mode()
    def compare(prompts: Sequence[str], pictures: Sequence[Image.Image]) -> Tensor:
        words: dict[str, Any] = {"padding": True, "truncation": True, "max_length": longest}
        inputs = processor(text=list(prompts), images=list(pictures), return_tensors="pt", **words)
        seen = network(**inputs.to(network.device))
        return torch.cosine_similarity(seen.text_embeds, seen.image_embeds).cpu()

    return compare


def _load(folder: Path) -> tuple[Any, Any]:
    try:
        from transformers import CLIPModel, CLIPProcessor
    except ImportError as error:
        raise ImportError('a CLIP score needs transformers: pip install "transformers>=4.50.3"') from error
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder with a CLIP model at {printable(folder)}: check the path")
    if not (folder / "tokenizer.json").is_file() and not (folder / "merges.txt").is_file():
        # transformers would make one without words, to which all prompts are alike
        raise FileNotFoundError(
            f"{shown(folder)} lacks tokenizer.json, or vocab.json and merges.txt: copy the whole model"
        )
    try:
        processor = CLIPProcessor.from_pretrained(folder, local_files_only=True)
        options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "output_loading_info": True}
        found: Any = CLIPModel.from_pretrained(folder, **options)
    except Exception as error:  # another model, a file too few or cut short: each says so in its own way
        reason = printable(" ".join(str(error).split()))[:200]
        raise ValueError(f"{shown(folder)} is no whole CLIP with its processor ({reason}): copy it again") from error
    network, told = found
    if told["missing_keys"]:  # transformers would draw them by chance
        name = min(told["missing_keys"])
        raise ValueError(f"{shown(folder)} lacks {name}, a weight of a CLIP: give the folder of a CLIP model")
    return network, processor


def _score(scores: Tensor) -> ClipScore:
    error = scores.std().item() / len(scores) ** 0.5 if len(scores) > 1 else float("nan")
    return ClipScore(scores.mean().item(), error, len(scores))
