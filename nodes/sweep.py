"""Sweep: two lists of values, for any two inputs of any nodes, in every combination."""

from __future__ import annotations

from typing import Any

from ..janusflow_core.sheet import Axis, any_value
from .native.compat import io
from .native.wires import Sweep


class JanusFlowSweep(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="JanusFlowSweep",
            display_name="Sweep (JanusFlow)",
            category="JanusFlow",
            description="Lists of values for any two inputs: what hangs on them runs once for every combination.",
            search_aliases=["xy plot", "grid", "compare settings", "janus sweep"],
            inputs=[
                io.String.Input(
                    "columns",
                    default="5, 10, 30",
                    tooltip="What the first output gives, from column to column: numbers, true and false, or words. "
                    "Values that hold commas are parted by |.",
                ),
                io.String.Input("rows", default="1, 2, 4", tooltip="What the second output gives, from row to row."),
                io.String.Input("column_name", default="steps", tooltip="What stands above the columns."),
                io.String.Input("row_name", default="cfg", tooltip="What stands before the rows."),
            ],
            outputs=[
                io.AnyType.Output(
                    display_name="column", is_output_list=True, tooltip="For the input that changes along a row."
                ),
                io.AnyType.Output(
                    display_name="row", is_output_list=True, tooltip="For the input that changes down a column."
                ),
                Sweep.Output(display_name="sweep", tooltip="For Sheet, which lays the pictures out."),
            ],
        )

    @classmethod
    def execute(cls, columns: str, rows: str, column_name: str = "", row_name: str = "") -> io.NodeOutput:
        # Either may be one value, so that a single row or column is a sweep too.
        across, down = (
            Axis.of(name, listed, {name: any_value})
            for name, listed in ((column_name or "column", columns), (row_name or "row", rows))
        )
        cells = [(column, row) for row in down.values for column in across.values]
        firsts: list[Any] = [column for column, _ in cells]
        return io.NodeOutput(firsts, [row for _, row in cells], (across, down))
