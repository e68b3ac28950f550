"""What a checkpoint says about drawing with it: the settings that suit it, and how its latents are previewed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from .config import Solver
from .values import Part, validated

Row = tuple[float, ...]


class Preview(Part):
    """Two small layers from latents to colors, for pictures of what is being drawn: one pixel for each latent value.

    For a VAE that is not SDXL's. `hidden`: a 3 x 3 convolution, each row the 9 C weights (channel, row, column) and the
    bias of one unit; SiLU; `color`: red, green and blue, each a weight for every unit and a bias.
    """

    hidden: tuple[Row, ...] = Field(min_length=1)
    color: tuple[Row, Row, Row]

    @property
    def channels(self) -> int:
        return len(self.hidden[0]) // 9

    @model_validator(mode="after")
    def _rectangular(self) -> Preview:
        widths = {len(row) for row in self.hidden}, {len(row) for row in self.color}
        if widths != ({9 * self.channels + 1}, {len(self.hidden) + 1}) or self.channels < 1:
            raise ValueError("hidden rows of 9 weights a channel and a bias, color rows of a weight a unit and a bias")
        return self

    def decode(self, latents: Tensor) -> Tensor:
        """Colors (B, 3, h, w), about -1 to 1, of latents (B, C, h, w) at the model's scale."""
        hidden, color = (torch.tensor(rows).to(latents) for rows in (self.hidden, self.color))
        weight = hidden[:, :-1].unflatten(1, (self.channels, 3, 3))
        units = F.silu(F.conv2d(F.pad(latents, (1, 1, 1, 1), mode="replicate"), weight, hidden[:, -1]))
        return F.conv2d(units, color[:, :-1, None, None], color[:, -1])


class DrawingConfig(Part):
    """The values of drawing_config.json; where it says nothing, the paper's settings and the trained size.

    `width` and `height` are in pixels.
    """

    steps: int = Field(default=30, ge=1, le=1000)
    guidance: float = Field(default=2.0, ge=0, le=30)
    solver: Solver = "euler"
    width: int | None = Field(default=None, gt=0, multiple_of=16)
    height: int | None = Field(default=None, gt=0, multiple_of=16)
    preview: Preview | None = None

    @classmethod
    def from_json_dict(cls, values: Mapping[str, Any]) -> DrawingConfig:
        """Read a parsed drawing_config.json; other keys are ignored, wrong values raise ValueError."""
        return validated(cls, values, "drawing_config.json")

    def to_json_dict(self) -> dict[str, Any]:
        """The content of a drawing_config.json with these values."""
        return self.model_dump(mode="json", exclude_none=True)
