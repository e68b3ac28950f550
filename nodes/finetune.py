"""REPA Fine-tune: captioned pictures to a LoRA, live in the graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..janusflow_core.train.options import FineTuneOptions
from .native.clip import JanusFlowCLIP
from .native.compat import io, ui
from .native.drawing import check_vae
from .native.files import data_folders, folder_state
from .native.model import JanusFlowModel
from .native.training import NO_FOLDER, Run, captioned_pictures, learnable

TEACH = ["generation", "captioning", "both"]


class JanusFlowREPAFineTune(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="JanusFlowREPAFineTune",
            display_name="REPA Fine-tune (JanusFlow)",
            category="JanusFlow",
            description="Teaches JanusFlow to draw, or to describe, what captioned pictures show; gives a LoRA.",
            search_aliases=["janus train", "lora training", "fine-tune", "repa", "dreambooth"],
            is_input_list=True,
            is_output_node=True,
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
            inputs=[
                io.Model.Input("model", tooltip="The MODEL of Load JanusFlow; LoRAs upon it are part of what learns."),
                io.Clip.Input("clip", tooltip="The CLIP of Load JanusFlow."),
                io.Vae.Input("vae", tooltip="The VAE of Load JanusFlow."),
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="The pictures, for example of Load Image-Text (from Folder). Their middle square is drawn, "
                    "the whole is described.",
                ),
                io.String.Input(
                    "texts",
                    optional=True,
                    force_input=True,
                    tooltip="What each picture shows, in the same order; or one text for all.",
                ),
                io.Combo.Input(
                    "folder",
                    options=[NO_FOLDER, *data_folders()],
                    default=NO_FOLDER,
                    tooltip="Instead of images and texts: a folder in ComfyUI's input or output folder, with a .txt "
                    "beside each picture.",
                ),
                io.Combo.Input(
                    "teach",
                    options=TEACH,
                    default="generation",
                    tooltip="generation: to draw what the texts say. captioning: to answer `Describe the image.` with "
                    "them. both: by turns.",
                ),
                io.Int.Input(
                    "steps",
                    default=2000,
                    min=2,
                    max=1_000_000,
                    tooltip="Updates of the LoRA: 2000 teach to draw a new shape, 300 to name it.",
                ),
                io.Int.Input("batch_size", default=8, min=1, max=1024, tooltip="Pictures a step."),
                io.Int.Input(
                    "rank", default=16, min=1, max=1024, tooltip="How much the LoRA can learn, and how large it is."
                ),
                io.Float.Input(
                    "learning_rate",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.00001,
                    round=False,
                    tooltip="0 takes what suits the model's width: 3e-4 for JanusFlow-1.3B, 3e-3 for janusflow-tiny.",
                ),
                # Not drawn anew after each run: another seed is another run, which the state of this one does not fit.
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFF,
                    control_after_generate=False,  # said, because the editor adds it to whatever is called seed
                    tooltip="Same seed, same LoRA.",
                ),
                io.String.Input(
                    "name",
                    default="janusflow",
                    tooltip="The run's name: its state and what a cancelled run leaves are saved as output/loras/NAME.",
                ),
                io.Boolean.Input(
                    "resume",
                    default=True,
                    tooltip="Go on where a run of this name was stopped; needs the same settings but for steps.",
                ),
                *_advanced(),
            ],
            outputs=[
                io.LoraModel.Output(display_name="lora", tooltip="For Load LoRA Model and Save LoRA Weights."),
                io.LossMap.Output(display_name="loss_map", tooltip="For Plot Loss Graph."),
                io.Int.Output(display_name="steps", tooltip="Steps done in all."),
                io.String.Output(
                    display_name="report", tooltip="What was learnt from, what was left out, how it went."
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, folder: list[str] | None = None, **kwargs: Any) -> int:
        name = _first(folder)
        return 0 if name in (None, NO_FOLDER) else folder_state(name)

    @classmethod
    def execute(cls, **lists: Any) -> io.NodeOutput:
        given = {name: _first(values) for name, values in lists.items()}
        model, clip, vae = given["model"], given["clip"], given["vae"]
        if not isinstance(getattr(model, "model", None), JanusFlowModel) or not isinstance(clip, JanusFlowCLIP):
            raise ValueError("REPA Fine-tune needs JanusFlow's MODEL and CLIP: connect those of Load JanusFlow.")
        check_vae(vae)
        captioned = captioned_pictures(lists.get("images"), lists.get("texts"), given["folder"])
        run = Run(model, _options(given), given["name"], given["resume"], given["preview_every"], cls.hidden)
        with learnable(model, clip, vae) as subject:
            result = run.train(subject, captioned)
        return io.NodeOutput(*result, ui=ui.PreviewText(result[-1]))


def _advanced() -> list[Any]:
    """What few will change."""
    repa = [
        io.Float.Input("weight", default=0.5, min=0.0, max=10.0, step=0.05, tooltip="Of the alignment in the loss."),
        io.Int.Input(
            "layer",
            default=0,
            min=0,
            max=64,
            tooltip="Layer that is aligned; 0 is a quarter of the way, as in the paper.",
        ),
        io.Combo.Input(
            "projector", options=["mlp", "conv"], tooltip="The paper's three layers, or one convolution (iREPA)."
        ),
        io.Int.Input(
            "stop",
            default=-1,
            min=-1,
            max=1_000_000,
            tooltip="Step that ends the alignment: 0 never, -1 when its gradient turns against drawing's (HASTE).",
        ),
    ]
    return [
        io.DynamicCombo.Input(
            "repa",
            options=[io.DynamicCombo.Option("off", []), io.DynamicCombo.Option("on", repa)],
            tooltip="Align the language model with what JanusFlow's own eyes see in the pictures (REPA).",
        ),
        io.Combo.Input(
            "kind",
            options=["lora", "rslora", "dora"],
            default="lora",
            advanced=True,
            tooltip="rslora suits large ranks; dora also turns the weights' lengths, and is slower.",
        ),
        io.Combo.Input(
            "schedule",
            options=["cosine", "constant"],
            default="cosine",
            advanced=True,
            tooltip="How the learning rate goes on after 20 steps of warm-up.",
        ),
        io.Int.Input(
            "accumulate",
            default=1,
            min=1,
            max=1024,
            advanced=True,
            tooltip="Batches a step: as good as a larger batch, in less memory.",
        ),
        io.Int.Input(
            "dreams",
            default=384,
            min=0,
            max=4096,
            advanced=True,
            tooltip="Pictures that the model first makes of no prompt, to be held to what it was; 0 lets it forget.",
        ),
        io.Float.Input(
            "drop",
            default=0.1,
            min=0.0,
            max=1.0,
            step=0.01,
            advanced=True,
            tooltip="Share of prompts that are dropped, for guidance: of the dreams', where there are some.",
        ),
        io.Int.Input(
            "preview_every",
            default=50,
            min=0,
            max=100_000,
            advanced=True,
            tooltip="Steps between two previews of the first text; 0 shows none.",
        ),
    ]


def _first(values: Any) -> Any:
    """The one value of an input, all of which come as lists; a group of them comes as a dictionary of lists."""
    if isinstance(values, Mapping):
        return {name: _first(inner) for name, inner in values.items()}
    return values[0] if values else None


def _options(given: Mapping[str, Any]) -> FineTuneOptions:
    repa = given["repa"]
    return FineTuneOptions(
        teach=given["teach"],
        steps=given["steps"],
        batch=given["batch_size"],
        accumulate=given["accumulate"],
        learning_rate=float(given["learning_rate"]),
        schedule=given["schedule"],
        rank=given["rank"],
        kind=given["kind"],
        drop=float(given["drop"]),
        dreams=given["dreams"],
        seed=given["seed"],
        repa=float(repa.get("weight", 0.0)),
        repa_layer=repa.get("layer", 0),
        repa_projector=repa.get("projector", "mlp"),
        repa_stop=repa.get("stop", -1),
    )
