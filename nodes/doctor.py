"""Doctor: what keeps JanusFlow from working here."""

from __future__ import annotations

import time
from pathlib import Path

from ..janusflow_core.checkpoint import bundled_names
from ..janusflow_core.host.doctor import examine, healthy, report
from .native.asking import shown
from .native.compat import folder_paths, io, model_management
from .native.files import checkpoint_names, checkpoint_path, janusflow_folders


class JanusFlowDoctor(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="JanusFlowDoctor",
            display_name="Doctor (JanusFlow)",
            category="JanusFlow",
            description="Looks for what keeps JanusFlow from working here, and names the remedy of each thing.",
            search_aliases=["janus doctor", "diagnose", "troubleshoot", "check installation", "report"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=checkpoint_names(),
                    tooltip="Examined beside janusflow-tiny and everything that lies in models/janusflow.",
                )
            ],
            outputs=[
                io.String.Output(
                    display_name="report",
                    tooltip="What was looked at, and what to do; your home folder stands there as ~.",
                ),
                io.Boolean.Output(display_name="healthy", tooltip="Whether nothing is broken."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, **kwargs: object) -> float:
        return time.time()  # what it looks at may change without a trace in the graph

    @classmethod
    def execute(cls, checkpoint: str) -> io.NodeOutput:
        findings = examine(
            checkpoint if checkpoint in bundled_names() else str(checkpoint_path(checkpoint)),
            Path(folder_paths.__file__).parent,
            janusflow_folders(),
            model_management.get_torch_device(),
        )
        told = report(findings)
        # The editor reads what is shown as Markdown: one paragraph for each finding.
        return io.NodeOutput(told, healthy(findings), ui=shown(told.replace("\n[", "\n\n[").splitlines(), cls.hidden))
