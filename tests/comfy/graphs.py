"""Prompts in ComfyUI's API format, built node by node, and the models that the tests of this folder share."""

import io
import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from janusflow_core.host.server import Result, Server
from janusflow_core.layout import describe_files, save_folder, save_single
from janusflow_core.pipeline import JanusFlowPipeline
from janusflow_core.world.scenes import COLORS, Object, Scene, render

sys.path.append(str(Path(__file__).parents[1] / "core"))
import golden  # noqa: E402 - lies beside the core's tests
from hardness import assert_sentence  # noqa: E402

TINY = "janusflow-tiny"  # bundled, 96 pixels, brings its VAE
GOLDEN_FILE, GOLDEN_FOLDER = "golden.safetensors", "golden-folder"  # random weights, 384 pixels, no VAE
MICRO_FILE = "micro.safetensors"  # random weights, 32 pixels, no VAE
SCALE = 0.13025
PROMPT = "a red circle left of a blue square"


class Node:
    """A node of a graph; `node[1]` is the link to its second output, the node itself stands for the first."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getitem__(self, slot: int) -> list[Any]:
        return [self.name, slot]


class Graph:
    """An API prompt under construction."""

    def __init__(self) -> None:
        self.prompt: dict[str, Any] = {}

    def add(self, kind: str, /, **inputs: Any) -> Node:
        node = Node(str(len(self.prompt) + 1))
        links = {name: value[0] if isinstance(value, Node) else value for name, value in inputs.items()}
        self.prompt[node.name] = {"class_type": kind, "inputs": links}
        return node

    def load(self, checkpoint: str = TINY, vae: str = "none", weight_dtype: str = "fp32") -> Node:
        return self.add("JanusFlowLoader", checkpoint=checkpoint, vae=vae, weight_dtype=weight_dtype)

    def encode(self, loaded: Node, text: str = PROMPT, negative: str = "") -> Node:
        return self.add("JanusFlowEncodePrompt", clip=loaded[1], text=text, negative=negative)

    def clip_text(self, loaded: Node, text: str) -> Node:
        return self.add("CLIPTextEncode", clip=loaded[1], text=text)

    def flow(self, model: Any, encoded: Node, **changed: Any) -> Node:
        """Our Flow Sampler over both outputs of Encode Prompt."""
        inputs = {
            "seed": 7,
            "steps": 4,
            "cfg": 2.0,
            "width": 0,
            "height": 0,
            "batch_size": 1,
            "denoise": 1.0,
            "sampler": "euler",
            "shift": 1.0,
            "positive": encoded[0],
            "negative": encoded[1],
        }
        return self.add("JanusFlowSampler", model=model, **{**inputs, **changed})

    def ksampler(self, model: Any, positive: Any, negative: Any, latent: Any = None, **changed: Any) -> Node:
        inputs = {"seed": 7, "steps": 4, "cfg": 2.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
        return self.add(
            "KSampler",
            model=model,
            positive=positive,
            negative=negative,
            latent_image=latent or self.empty(96, 96),
            **{**inputs, **changed},
        )

    def empty(self, width: int, height: int, batch: int = 1) -> Node:
        return self.add("EmptyLatentImage", width=width, height=height, batch_size=batch)

    def save(self, latent: Any) -> Node:
        return self.add("SaveLatent", samples=latent, filename_prefix="latents/test")

    def describe(
        self,
        clip: Any,
        image: Any,
        question: Any = "Describe the image.",
        tokens: int = 8,
        ask: str = "own question",
        pictures: str = "one by one",
        **sampling: Any,
    ) -> Node:
        mode = {
            "mode": "sample" if sampling else "greedy",
            **{f"mode.{name}": value for name, value in sampling.items()},
        }
        asked = {"ask": ask, "question": question, "pictures": pictures, "max_new_tokens": tokens}
        return self.add("JanusFlowDescribe", clip=clip, image=image, **asked, **mode)

    def generate_text(self, clip: Any, prompt: Any, tokens: int = 8, image: Any = None, **sampling: Any) -> Node:
        mode = {"sampling_mode": "on" if sampling else "off"}
        mode |= {f"sampling_mode.{name}": value for name, value in sampling.items()}
        pictures = {} if image is None else {"image": image}
        return self.add("TextGenerate", clip=clip, prompt=prompt, max_length=tokens, **pictures, **mode)

    def tune(self, loaded: Node, folder: Any, **changed: Any) -> Node:
        settings = {"teach": "generation", "steps": 4, "batch_size": 2, "rank": 4, "learning_rate": 0.01, "seed": 3}
        further = {"name": "server", "resume": True, "repa": "off", "kind": "lora", "schedule": "constant"}
        rare = {"accumulate": 1, "dreams": 2, "drop": 0.1, "preview_every": 5}
        links = {"model": loaded, "clip": loaded[1], "vae": loaded[2], "folder": folder}
        return self.add("JanusFlowREPAFineTune", **links, **{**settings, **further, **rare, **changed})

    def show(self, text: Any) -> Node:
        return self.add("PreviewAny", source=text)

    def run(self, server: Server) -> Result:
        """The result of a prompt that must succeed."""
        result = server.run(self.prompt)
        assert result.status == "success", result.error
        return result

    def latents(self, server: Server, *nodes: Any) -> list[Tensor]:
        """What these LATENT outputs hold, at the model's scale."""
        saved = [self.save(node) for node in nodes]
        result = self.run(server)
        files = [server.output_path(result.outputs[node.name]["latents"][0]) for node in saved]
        return [load_file(file)["latent_tensor"] * SCALE for file in files]

    def texts(self, server: Server, *nodes: Any) -> list[list[str]]:
        """What these STRING outputs hold; a list output gives several."""
        shown = [self.show(node) for node in nodes]
        result = self.run(server)
        return [result.outputs[node.name]["text"] for node in shown]

    def pictures(self, server: Server, *nodes: Any) -> list[Tensor]:
        """What these IMAGE outputs hold after SaveImage, (B, 3, H, W) in [0, 1]."""
        saved = [self.add("SaveImage", images=node, filename_prefix="test") for node in nodes]
        result = self.run(server)
        return [
            torch.stack([read_picture(server.output_path(image)) for image in result.outputs[node.name]["images"]])
            for node in saved
        ]


def previews(result: Result, node: Node) -> list[Image.Image]:
    """The pictures that came over the websocket for a node, with their sizes."""
    found = []
    for kind, payload in result.previews:
        head = 4 + int.from_bytes(payload[:4], "big")
        if kind == 4 and json.loads(payload[4:head])["node_id"] == node.name:
            found.append(Image.open(io.BytesIO(payload[head:])))
    return found


def failure(server: Server, graph: Graph, node_type: str, *words: str) -> str:
    """The message of a prompt that must fail at this node with one sentence that holds these words."""
    result = server.run(graph.prompt)
    assert result.status == "error" and result.error is not None, f"{result.status}, outputs {list(result.outputs)}"
    message = result.error["exception_message"].strip()
    assert result.error["node_type"] == node_type, (result.error["node_type"], message)
    assert_sentence(message, *words)
    return message


def relative(found: Tensor, expected: Tensor) -> float:
    """Relative L2 distance; infinite for NaN."""
    return golden.relative(found, expected)


# --- models and pictures ----------------------------------------------------------------------------------------


@cache
def tiny() -> JanusFlowPipeline:
    """The core's own bundled model in float32."""
    return JanusFlowPipeline.from_pretrained(TINY, device="cpu", dtype=torch.float32)


def parts(pipe: JanusFlowPipeline, **changed: Any) -> dict[str, Any]:
    """The arguments of save_single and save_folder for a pipeline without VAE."""
    return {
        "weights": pipe.model.state_dict(),
        "tokenizer_json": pipe.tokenizer.json,
        "parts": describe_files(pipe.model.config, pipe.tokenizer, pipe.image_config),
        **changed,
    }


def stock(models: Path) -> None:
    """Fill a server's models folder with every kind of checkpoint that Load JanusFlow lists."""
    if (models / "checkpoints" / GOLDEN_FILE).exists():
        return
    save_folder(models / "janusflow" / GOLDEN_FOLDER, **parts(golden.pipeline()))
    save_single(models / "diffusion_models" / MICRO_FILE, **parts(golden.micro()))
    save_single(models / "checkpoints" / GOLDEN_FILE, **parts(golden.pipeline()))


def scene(*things: tuple[str, str, float, float]) -> Image.Image:
    """A picture of the embedded model's world, of (color, shape, x, y)."""
    objects = tuple(Object(shape, color, x, y, 14, COLORS[color]) for color, shape, x, y in things)
    return Image.fromarray(render(Scene((250, 250, 250), objects)))


LEFT_RIGHT = scene(("red", "circle", 26, 48), ("blue", "square", 70, 48))
STARS = scene(("green", "star", 24, 30), ("green", "star", 70, 28), ("green", "star", 48, 70))


def upload(server: Server, folder: Path, *pictures: Image.Image) -> list[str]:
    """Puts pictures among the server's inputs and returns the names that LoadImage takes."""
    names = []
    for picture in pictures:
        path = folder / f"{abs(hash(picture.tobytes())):x}.png"
        picture.save(path)
        names.append(server.upload_image(path))
    return names


def read_picture(path: Path) -> Tensor:
    """Pixels (3, H, W) in [0, 1]."""
    with Image.open(path) as image:
        return torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1) / 255
