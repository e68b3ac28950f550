"""JanusFlow and SDXL hand each other their latents, at SDXL's 1024 pixels, in a real server.

SDXL's weights are 7 GB, so a thin network of its class stands in for it (its own file format, model type, noise levels,
latents and conditioning), whose last layer is zero: it predicts no noise, so that what it makes of a latent is known.
"""

import json
from pathlib import Path

import graphs
import pytest
import torch
from graphs import golden, relative
from safetensors.torch import load_file
from test_workflows import NEED_FILES
from test_workflows import test_every_node_fits_its_schema as fits_its_schema
from torch import Tensor

from janusflow_core.guidance import Guidance
from janusflow_core.host.find import find_comfyui
from janusflow_core.host.server import Server
from janusflow_core.host.workflow import convert_workflow
from janusflow_core.layout import save_folder
from janusflow_core.sampling import draw_noise, integrate, time_grid

CHECKOUT = Path(__file__).resolve().parents[2]
FROM_SDXL, TO_SDXL = NEED_FILES
THIN = """
import torch
from comfy import model_base, model_patcher, supported_models

SHAPE = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": [1, 1],
    "channel_mult": [1, 2], "transformer_depth": [0, 1], "transformer_depth_output": [0, 0, 1, 1],
    "num_head_channels": 32, "transformer_depth_middle": 1, "context_dim": 2048, "adm_in_channels": 2816,
    "num_classes": "sequential", "use_linear_in_transformer": True, "use_spatial_transformer": True, "legacy": False,
}

class Checkpoint:
    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL", "CLIP", "VAE"), "load", "thin"
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"ckpt_name": ("STRING",)}}
    def load(self, ckpt_name):
        model, cpu = model_base.SDXL(supported_models.SDXL(SHAPE)), torch.device("cpu")
        random = torch.Generator().manual_seed(0)
        for weight in model.parameters():
            weight.data.normal_(0, 0.02, generator=random)
        for weight in model.diffusion_model.out[-1].parameters():
            weight.data.zero_()
        return (model_patcher.ModelPatcher(model, cpu, cpu), None, None)

class Prompt:
    RETURN_TYPES, FUNCTION, CATEGORY = ("CONDITIONING",), "encode", "thin"
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"text": ("STRING",)}}
    def encode(self, text):
        random = torch.Generator().manual_seed(len(text))
        pooled = torch.randn(1, 1280, generator=random)
        return ([[torch.randn(1, 77, 2048, generator=random), {"pooled_output": pooled}]],)

NODE_CLASS_MAPPINGS = {"ThinCheckpoint": Checkpoint, "ThinPrompt": Prompt}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One with the thin SDXL, and a JanusFlow of 384 pixels and random weights under the official one's name."""
    base = tmp_path_factory.mktemp("handoff")
    (base / "custom_nodes" / "thin").mkdir(parents=True)
    (base / "custom_nodes" / "thin" / "__init__.py").write_text(THIN)
    save_folder(base / "models" / "janusflow" / "JanusFlow-1.3B", **graphs.parts(golden.pipeline()))
    (base / "models" / "checkpoints").mkdir(parents=True, exist_ok=True)
    (base / "models" / "checkpoints" / "sd_xl_base_1.0.safetensors").touch()  # for the list alone
    with Server(find_comfyui(), pack=CHECKOUT, pack_name="ComfyUI-JanusFlow", base=base) as running:
        yield running


def prepared(server: Server, name: str) -> tuple[dict, dict[str, list[str]]]:
    """The workflow as an API prompt on the thin SDXL and our embedded VAE, fewer steps, and its nodes by class."""
    workflow = json.loads((CHECKOUT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    api = convert_workflow(workflow, server.object_info())
    api["vae"] = {"class_type": "JanusFlowLoader", "inputs": {"checkpoint": "janusflow-tiny", "vae": "from checkpoint"}}
    api["vae"]["inputs"]["weight_dtype"] = "fp32"
    for node in api.values():
        inputs = node["inputs"]
        if node["class_type"] == "CheckpointLoaderSimple":
            node["class_type"] = "ThinCheckpoint"
        if node["class_type"] == "CLIPTextEncode":
            node["class_type"] = "ThinPrompt"
            del inputs["clip"]
        if node["class_type"] == "JanusFlowLoader":
            inputs["weight_dtype"] = "fp32"
        if "vae" in inputs and isinstance(inputs["vae"], list):
            inputs["vae"] = ["vae", 2]
        if node["class_type"] == "KSampler":
            inputs |= {"steps": 3, "scheduler": "normal", "sampler_name": "euler"}
        if node["class_type"] == "JanusFlowSampler":
            inputs |= {"steps": 3, "cfg": 2.0}
    kinds: dict[str, list[str]] = {}
    for number, node in api.items():
        kinds.setdefault(node["class_type"], []).append(number)
    return api, kinds


def run(server: Server, api: dict, *nodes: str) -> list[Tensor]:
    """What these nodes' latents hold, at the model's scale."""
    for node in nodes:
        inputs = {"samples": [node, 0], "filename_prefix": f"latents/{node}"}
        api[f"save {node}"] = {"class_type": "SaveLatent", "inputs": inputs}
    result = server.run(api)
    assert result.status == "success", result.error
    files = [server.output_path(result.outputs[f"save {node}"]["latents"][0]) for node in nodes]
    return [load_file(file)["latent_tensor"].float() * graphs.SCALE for file in files]


def test_sdxl_goes_on_with_janusflows_latent(server):
    api, kinds = prepared(server, TO_SDXL)
    (small,), (large,), (again,) = (kinds[kind] for kind in ("JanusFlowSampler", "LatentUpscale", "KSampler"))
    drawn, start, end = run(server, api, small, large, again)
    prompt = api[kinds["JanusFlowEncodePrompt"][0]]["inputs"]["text"]
    expected = golden.pipeline().generate(prompt, steps=3, guidance=2.0, seed=1, output="latent")
    assert drawn.shape == (1, 4, 48, 48) and relative(drawn, expected) <= 1e-3
    assert start.shape == end.shape == (1, 4, 128, 128)
    # A model that predicts no noise leaves all of the noise that the sampler added: what it added it to is known.
    left = end - start
    noise = torch.randn(1, 4, 128, 128, generator=torch.manual_seed(1))
    sigma = (left * noise).sum() / noise.square().sum()
    assert 0.1 < sigma < 14 and relative(left, sigma * noise) <= 1e-3


def test_janusflow_goes_on_with_sdxls_latent(server):
    api, kinds = prepared(server, FROM_SDXL)
    (first,), (down,), (again,) = (kinds[kind] for kind in ("KSampler", "LatentUpscale", "JanusFlowSampler"))
    drawn, start, end = run(server, api, first, down, again)
    assert drawn.shape == (1, 4, 128, 128) and start.shape == end.shape == (1, 4, 48, 48)
    pipe, noise = golden.pipeline(), draw_noise((4, 48, 48), [1])
    prompt = api[kinds["JanusFlowEncodePrompt"][0]]["inputs"]["text"]
    velocity = pipe.guided_velocity([prompt], None, Guidance(2.0), noise.shape)
    with torch.no_grad():
        expected = integrate(velocity, 0.4 * start + 0.6 * noise, time_grid(3, 0.4))
    assert relative(end, expected) <= 1e-3


@pytest.mark.parametrize("name", NEED_FILES)
def test_the_workflow_fits_the_nodes(server, name):
    fits_its_schema(name, server.object_info())


@pytest.mark.parametrize("name", NEED_FILES)
def test_the_workflow_says_where_its_files_come_from(name):
    workflow = json.loads((CHECKOUT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    (loader,) = (node for node in workflow["nodes"] if node["type"] == "CheckpointLoaderSimple")
    (model,) = loader["properties"]["models"]
    assert loader["widgets_values"] == [model["name"]] and model["directory"] == "checkpoints"
    assert model["url"].startswith("https://huggingface.co/") and model["url"].endswith(model["name"])
