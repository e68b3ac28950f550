"""Sheet: the pictures of a Sweep in one, labelled."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..janusflow_core.image import from_tensor, pixels
from ..janusflow_core.sheet import Axis, sheet
from .native.compat import io
from .native.wires import Sweep


class JanusFlowSheet(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="JanusFlowSheet",
            display_name="Sheet (JanusFlow)",
            category="JanusFlow",
            description="Lays the pictures of a Sweep out in one, with their values above columns and before rows.",
            search_aliases=["xy plot", "grid", "contact sheet", "janus sheet"],
            inputs=[
                io.Image.Input(
                    "images", tooltip="What was drawn with the values of Sweep. Of batches, each makes a sheet."
                ),
                Sweep.Input("sweep", tooltip="The third output of Sweep."),
            ],
            outputs=[io.Image.Output(display_name="IMAGE", tooltip="One sheet for each picture of a batch.")],
            is_input_list=True,
        )

    @classmethod
    def execute(cls, images: list[Tensor], sweep: list[tuple[Axis, Axis]]) -> io.NodeOutput:
        across, down = sweep[0]
        wanted, batches = len(across.values) * len(down.values), {len(batch) for batch in images}
        if len(images) != wanted or len(batches) != 1:
            raise ValueError(
                f"Sheet got {len(images)} pictures for {wanted} combinations of {across.name} and {down.name}: connect "
                "both outputs of Sweep to what is drawn, and all of what is drawn to Sheet."
            )
        cells: list[Any] = [from_tensor(batch) for batch in images]
        width, sheets = len(across.values), []
        for number in range(batches.pop()):
            own = [pictures[number] for pictures in cells]
            lines = [own[first : first + width] for first in range(0, wanted, width)]
            sheets.append(pixels(sheet(lines, across.labels(), down.labels())).movedim(0, -1))
        return io.NodeOutput(torch.stack(sheets))
