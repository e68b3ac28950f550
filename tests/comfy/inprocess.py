"""ComfyUI on the CPU inside the test's process, with the pack loaded as ComfyUI loads it: for what no wire carries."""

import asyncio
import atexit
import importlib
import importlib.util
import re
import shutil
import sys
import tempfile
from functools import cache, cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from graphs import PROMPT, SCALE

from janusflow_core.host.find import find_comfyui

CHECKOUT = Path(__file__).resolve().parents[2]
PACK = "janusflow_pack"
NODES = {
    "load": "JanusFlowLoader",
    "encode": "JanusFlowEncodePrompt",
    "sample": "JanusFlowSampler",
    "decode": "JanusFlowVAEDecode",
    "describe": "JanusFlowDescribe",
    "choose": "JanusFlowChoose",
    "yes_no": "JanusFlowYesNo",
    "number": "JanusFlowNumber",
    "structured": "JanusFlowJSON",
    "turn": "JanusFlowChatTurn",
    "ask": "JanusFlowAsk",
    "save_chat": "JanusFlowSaveChat",
    "load_chat": "JanusFlowLoadChat",
    "score": "JanusFlowScore",
    "retry": "JanusFlowRetry",
    "caption": "JanusFlowCaptionFolder",
    "finetune": "JanusFlowREPAFineTune",
    "sweep": "JanusFlowSweep",
    "sheet": "JanusFlowSheet",
    "doctor": "JanusFlowDoctor",
}


def since(version: str, what: str) -> None:
    """Skip the test where this ComfyUI is older than the version that brought `what`."""
    if older_than(version):
        pytest.skip(f"ComfyUI {comfyui_version()} lacks {what}, which {version} has")


def older_than(version: str) -> bool:
    """Whether tests run on a ComfyUI before this version."""
    here, there = ([int(number) for number in re.findall(r"\d+", text)] for text in (comfyui_version(), version))
    return here < there


@cache
def comfyui_version() -> str:
    """The version of the ComfyUI that tests run on, as its comfyui_version.py says."""
    text = (find_comfyui() / "comfyui_version.py").read_text(encoding="utf-8")
    return text.partition('__version__ = "')[2].partition('"')[0]


class Pack:
    """The pack's modules and nodes, and the bundled model loaded by them."""

    def __init__(self, base: Path) -> None:
        self.base = base

    def module(self, name: str) -> ModuleType:
        """A module of the pack (`nodes.native.model`)."""
        return importlib.import_module(f"{PACK}.{name}")

    def node(self, name: str) -> Any:
        """A node's `execute`, returning its one output or all of them."""
        kind = getattr(self.module(f"nodes.{name}"), NODES[name])

        def execute(*args: Any, **kwargs: Any) -> Any:
            outputs = kind.execute(*args, **kwargs).args
            return outputs[0] if len(outputs) == 1 else outputs

        return execute

    @cached_property
    def tiny(self) -> tuple[Any, Any, Any]:
        """MODEL, CLIP and VAE of the bundled model, float32."""
        with torch.inference_mode():
            return self.node("load")("janusflow-tiny", "from checkpoint", "fp32")

    def sdxl(self) -> tuple[Any, Any]:
        """A MODEL of SDXL's class, thinner than the real one, and a CLIP that is not ours."""
        from comfy import model_base, model_patcher, sd, supported_models

        config = supported_models.SDXL(
            {
                "image_size": 32,
                "in_channels": 4,
                "out_channels": 4,
                "model_channels": 32,
                "num_res_blocks": [1],
                "channel_mult": [1],
                "transformer_depth": [0],
                "transformer_depth_output": [0, 0],
                "num_head_channels": 32,
                "transformer_depth_middle": 0,
                "context_dim": 2048,
                "adm_in_channels": 2816,
                "num_classes": "sequential",
                "use_linear_in_transformer": True,
                "use_spatial_transformer": True,
                "legacy": False,
            }
        )
        model, cpu = model_base.SDXL(config), torch.device("cpu")
        return model_patcher.ModelPatcher(model, cpu, cpu), sd.CLIP(no_init=True)


def draw(pack: Pack, model: Any, clip: Any, text: str = PROMPT, **changed: Any) -> torch.Tensor:
    """A picture's latent at the model's scale."""
    inputs = {"seed": 3, "steps": 3, "cfg": 2.0, "width": 0, "height": 0, "batch_size": 1}
    positive, negative = pack.node("encode")(clip, text)
    return pack.node("sample")(model, positive, negative, **{**inputs, **changed})["samples"] * SCALE


@cache
def load_pack() -> Pack:
    """Import ComfyUI and the pack, once for all tests of this process, with a models folder of their own."""
    base = Path(tempfile.mkdtemp(prefix="janusflow-inprocess-"))
    atexit.register(shutil.rmtree, base, ignore_errors=True)
    for folder in ("models/checkpoints", "models/diffusion_models", "models/loras", "models/vae", "output", "input"):
        (base / folder).mkdir(parents=True)
    sys.path.insert(0, str(find_comfyui()))  # before the checkout, whose `nodes` is another
    from comfy.cli_args import args

    args.cpu, args.base_directory = True, str(base)
    importlib.import_module("utils.extra_config")  # as main.py does: ComfyUI's nodes put another `utils` in front
    importlib.import_module("nodes")
    spec = importlib.util.spec_from_file_location(
        PACK, CHECKOUT / "__init__.py", submodule_search_locations=[str(CHECKOUT)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACK] = module
    spec.loader.exec_module(module)
    asyncio.run(register(module))
    return Pack(base)


async def register(module: ModuleType) -> None:
    extension = await module.comfy_entrypoint()
    await extension.on_load()
