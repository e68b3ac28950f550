"""What one can say about a fine-tuning run. Imports no torch, so that the command line helps at once."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from ..values import Part

Teach = Literal["generation", "captioning", "both"]
Kind = Literal["lora", "rslora", "dora"]
PartName = Literal["attention", "mlp", "generation", "head"]
Projector = Literal["mlp", "conv"]


class FineTuneOptions(Part):
    """A fine-tuning run but for its pictures: what is taught, for how long, and to which layers."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    teach: Teach = "generation"
    """generation: to draw what the texts say; captioning: to say the texts of the pictures; or both."""
    steps: int = Field(default=2000, ge=1)
    """Updates of the LoRA: 2000 teach to draw a new shape, 300 to name it."""
    batch: int = Field(default=8, ge=1)
    """Pictures a batch."""
    accumulate: int = Field(default=1, ge=1)
    """Batches a step: as good as a larger batch in less memory."""
    learning_rate: float = Field(default=0.0, ge=0, le=1)
    """Of AdamW, at its height; 0 takes 0.6 / hidden size: 3e-3 for janusflow-tiny, 3e-4 for JanusFlow-1.3B."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """How the learning rate goes on after its warm-up."""
    warmup: int = Field(default=20, ge=0)
    """Steps until the learning rate has its full height."""
    rank: int = Field(default=16, ge=1, le=1024)
    """Of the LoRA: how much it can learn, and how large its file is."""
    alpha: float = Field(default=0.0, ge=0)
    """Scale of the LoRA; 0 takes the rank."""
    kind: Kind = "lora"
    """rslora scales by the root of the rank, for large ones; dora also turns the weights' lengths."""
    parts: tuple[PartName, ...] = ("attention", "mlp", "generation")
    """Layers that are changed: attention and mlp of the language model, the generation encoder and decoder, the head
    that chooses words; those that what is taught does not use are left out."""
    time_mean: float = Field(default=0.0, ge=-3, le=3)
    """Mean of the times' logit: 0 is the paper's; below 0 more of them lie near the noise, where flat pictures are
    decided."""
    drop: float = Field(default=0.1, ge=0, le=1)
    """Share of prompts that are dropped, for guidance: of the dreams', where there are some."""
    dreams: int = Field(default=384, ge=0)
    """Pictures that the model first makes of no prompt, in its own words, to be held to; 0 lets it forget."""
    keep: float = Field(default=1.0, ge=0)
    """How much it is held to them."""
    ratio: float = Field(default=0.85, gt=0, lt=1)
    """Share of batches that are drawn when both are taught; the others are captioned, which is learnt sooner."""
    question: str = Field(default="Describe the image.", min_length=1)
    """What the texts answer when captioning is taught."""
    eight_bit: bool = False
    """Keep AdamW's momenta in 8 bits, with bitsandbytes."""
    seed: int = Field(default=0, ge=0)
    """Same seed, same LoRA."""
    repa: float = Field(default=0.0, ge=0)
    """Weight of aligning the language model with what the model itself sees in the pictures (REPA); 0 is none, 0.5
    REPA's."""
    repa_layer: int = Field(default=0, ge=0)
    """Layer that is aligned; 0 is a quarter of the way, as in the paper."""
    repa_projector: Projector = "mlp"
    """Head between the two: the paper's three layers, or one convolution (iREPA)."""
    repa_stop: int = Field(default=-1, ge=-1)
    """Step that ends the alignment; 0 is never, -1 when it works against drawing (HASTE)."""
