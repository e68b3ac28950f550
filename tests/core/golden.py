"""What the authors' implementation gave (tests/golden), and the models that it was recorded from.

No weights are stored: every tensor of the recorded models follows from its name, its shape and a seed.
"""

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from janusflow_core.autoencoder import Autoencoder, VAEConfig
from janusflow_core.config import JanusFlowConfig
from janusflow_core.image import ImageConfig, preprocess
from janusflow_core.layout import describe_files, save_folder
from janusflow_core.model import JanusFlow
from janusflow_core.pipeline import JanusFlowPipeline
from janusflow_core.tokenizer import JanusTokenizer, Message, ProcessorConfig
from janusflow_core.train.subject import Subject
from janusflow_core.vae import LatentCodec

GOLDEN = Path(__file__).parents[1] / "golden"
SEEDS = {"tiny": 6, "wide": 8, "tiny_vae": 7}
# Relative L2, float32 on CPU.
MODULE, VELOCITY, TRAJECTORY = 2e-5, 5e-5, 2e-4


def read_json(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / name).read_text("utf-8"))


MANIFEST = read_json("golden/manifest.json")
CONVERSATIONS = {name: case for name, case in MANIFEST["und"]["cases"].items() if "conversation" in case}
PICTURES = {name: case for name, case in MANIFEST["t2i"]["cases"].items() if "prompt" in case}


@cache
def tensors(name: str) -> dict[str, Tensor]:
    """The tensors of golden/NAME.safetensors; not to be written to."""
    return load_file(GOLDEN / "golden" / f"{name}.safetensors")


def relative(found: Tensor, expected: Tensor) -> float:
    """Relative L2 distance; infinite for NaN, so that no comparison passes by it."""
    assert found.shape == expected.shape, (found.shape, expected.shape)
    error = ((found.double() - expected.double()).norm() / expected.double().norm()).item()
    return math.inf if math.isnan(error) else error


def assert_close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    error = relative(found, expected)
    assert error <= tolerance, f"relative L2 {error:.1e}, tolerance {tolerance:.1e}"


# --- models -----------------------------------------------------------------------------------------------------


def recipe(key: str, shape: Sequence[int], seed: int) -> Tensor:
    """The recorded value of a weight (golden/manifest.json, model.recipe): offset + scale * standard normal."""
    offset, scale = _offset_and_scale(key, len(shape), math.prod(shape[1:]))
    normal = np.random.RandomState((zlib.crc32(key.encode()) + seed) % 2**32).standard_normal(shape)
    return torch.from_numpy((offset + scale * normal).astype(np.float32))


def curved(z: Tensor, t: float) -> Tensor:
    """A velocity that depends on state and time and needs no model; smooth, so that solvers converge."""
    return torch.sin(2 * z) + math.cos(3 * t) - 0.5 * z


def _offset_and_scale(key: str, dimensions: int, fan_in: int) -> tuple[float, float]:
    fixed = {
        "channelwise_norm.weight": 0.5,
        "channelwise_norm.bias": 0.1,
        "beg_of_und_embed": 0.5,
        "pos_embed": 0.3,
        "attn_pool.latent": 0.3,
        "embed_tokens.weight": 0.6,
        "lm_head.weight": 3 / math.sqrt(fan_in),
    }
    for suffix, scale in fixed.items():
        if key.endswith(suffix):
            return 0.0, scale
    if key.endswith("bias"):
        return 0.0, 0.05
    if dimensions == 1:
        return 1.0, 0.1
    gains = {
        1.6: ("q_proj", "k_proj"),
        0.5: ("cond_embeds_mapper",),
        0.7: ("o_proj", "down_proj", "attn.proj", "mlp.fc2", "channelwise_linear_2"),
    }
    for gain, names in gains.items():
        if key.endswith(tuple(f"{name}.weight" for name in names)):
            return 0.0, gain / math.sqrt(fan_in)
    return 0.0, 1 / math.sqrt(fan_in)


@cache
def config(name: str) -> JanusFlowConfig:
    return JanusFlowConfig.from_dict(read_json(name if name.endswith(".json") else f"{name}/config.json"))


def new_model(shapes: JanusFlowConfig, seed: int) -> JanusFlow:
    """A model with the recipe's weights, float32."""
    model = JanusFlow(shapes, device="meta")
    weights = {key: recipe(key, value.shape, seed) for key, value in model.state_dict().items()}
    model.load_state_dict(weights, assign=True)
    return model.eval().requires_grad_(False)


def new_codec() -> LatentCodec:
    """The recorded autoencoder."""
    return LatentCodec(recorded_vae())


def recorded_vae() -> Autoencoder:
    """The recorded autoencoder as a file holds it."""
    return Autoencoder(VAEConfig.from_json_dict(read_json("tiny_vae/config.json")), vae_weights())


def vae_weights() -> dict[str, Tensor]:
    diffusers = pytest.importorskip("diffusers", reason="the recorded VAE has the shapes of one of diffusers'")
    with torch.device("meta"):
        shapes = diffusers.AutoencoderKL.from_config(read_json("tiny_vae/config.json")).state_dict()
    return {key: recipe(key, value.shape, SEEDS["tiny_vae"]) for key, value in shapes.items()}


def new_pipeline(tokenizer: str = "tiny", codec: LatentCodec | None = None) -> JanusFlowPipeline:
    """The recorded tiny model, its weights its own, with the tokenizer of a golden folder."""
    folder = GOLDEN / tokenizer
    image = ImageConfig.from_json_dict(read_json(f"{tokenizer}/preprocessor_config.json"))
    model = new_model(config("tiny"), SEEDS["tiny"])
    return JanusFlowPipeline(model, JanusTokenizer.from_folder(folder), image, codec, torch.device("cpu"))


@cache
def pipeline(tokenizer: str = "tiny") -> JanusFlowPipeline:
    """The same, shared: not to be changed."""
    return new_pipeline(tokenizer)


def pool_weights(shapes: JanusFlowConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the attention pool that official files hold and no one uses."""
    width, hidden = shapes.vision.width, int(shapes.vision.width * shapes.vision.mlp_ratio)
    linear = {
        "q": (width, width),
        "kv": (2 * width, width),
        "proj": (width, width),
        "mlp.fc1": (hidden, width),
        "mlp.fc2": (width, hidden),
    }
    pool: dict[str, tuple[int, ...]] = {"latent": (1, 1, width), "norm.weight": (width,), "norm.bias": (width,)}
    for name, shape in linear.items():
        pool |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return {f"vision_und_enc_model.vision_tower.attn_pool.{name}": shape for name, shape in pool.items()}


# --- a model of a few thousand weights, for properties that the recordings cannot cover -------------------------


def micro_dict(**language: Any) -> dict[str, Any]:
    """An official config.json of 32-pixel pictures; keyword arguments replace values of language_config."""
    data = read_json("tiny/config.json")
    data["language_config"] |= {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 2,
        **language,
    }
    data["vision_und_enc_config"]["params"] |= {"width": 16, "heads": 2, "layers": 2, "image_size": 32}
    data["vision_gen_enc_config"]["params"] |= {"block_out_channels": [8], "hidden_size": 32}
    data["vision_gen_dec_config"]["params"] |= {"block_out_channels": [8], "hidden_size": 32, "in_channels": 8}
    return data


def micro_tokenizer() -> JanusTokenizer:
    """The golden tokenizer with the 4 image tokens of 32-pixel pictures."""
    processor = ProcessorConfig.from_json_dict({**read_json("tiny/processor_config.json"), "num_image_tokens": 4})
    special = read_json("tiny/special_tokens_map.json")
    return JanusTokenizer((GOLDEN / "tiny" / "tokenizer.json").read_text("utf-8"), processor, special)


def micro_pipeline(codec: LatentCodec | None = None, seed: int = 0, **language: Any) -> JanusFlowPipeline:
    model = new_model(JanusFlowConfig.from_dict(micro_dict(**language)), seed)
    return JanusFlowPipeline(model, micro_tokenizer(), ImageConfig(image_size=32), codec, torch.device("cpu"))


@cache
def micro() -> JanusFlowPipeline:
    """The same, shared: not to be changed."""
    return micro_pipeline()


def new_subject(pipe: JanusFlowPipeline) -> Subject:
    """A pipeline as fine-tuning sees it; without a codec, latents stand for pixels in both directions."""
    encode, decode = (pipe.codec.encode, pipe.codec.decode) if pipe.codec else (_shrink, _grow)
    return Subject(pipe.model, pipe.model, pipe.tokenizer, pipe.image_config, encode, decode)


def _shrink(pixels: Tensor) -> Tensor:
    return torch.nn.functional.avg_pool2d(pixels, 8)[:, [0, 1, 2, 0]]


def _grow(latents: Tensor) -> Tensor:
    return latents[:, :3].repeat_interleave(8, 2).repeat_interleave(8, 3).clamp(0, 1)


def write_folder(path: Path, pipe: JanusFlowPipeline, codec: bool = False) -> Path:
    """The official layout on disk: a model, its unused attention pool and, if asked, the recorded autoencoder."""
    shapes = pipe.model.config
    weights = pipe.model.state_dict() | {key: recipe(key, s, 6) for key, s in pool_weights(shapes).items()}
    parts = describe_files(shapes, pipe.tokenizer, pipe.image_config)
    save_folder(path, weights, parts, pipe.tokenizer.json, recorded_vae() if codec else None)
    return path


# --- inputs -----------------------------------------------------------------------------------------------------


def picture(name: str) -> Image.Image:
    """A golden picture as recorded after resizing, so that no version of Pillow changes what the model sees."""
    return Image.open(GOLDEN / "golden" / "preprocessed_u8" / f"main__{name}.png")


@cache
def pixels(name: str) -> Tensor:
    """The vision encoder's input (1, 3, 384, 384) for a golden picture."""
    return preprocess(picture(name), pipeline().image_config)[None]


def messages(name: str) -> list[Message]:
    return [Message(turn["role"], turn["content"]) for turn in CONVERSATIONS[name]["conversation"]]


def conversation_inputs(pipe: JanusFlowPipeline, names: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids (B, T), what is real (B, T) and embeddings (B, T, D) of golden conversations, left-padded."""
    rows = [pipe.tokenizer.understanding_ids(messages(n), len(CONVERSATIONS[n]["images"])) for n in names]
    ids, real = pipe.tokenizer.pad_left(rows)
    images = [pixels(image) for n in names for image in CONVERSATIONS[n]["images"]]
    mask = pipe.tokenizer.image_mask(ids) & real
    features = pipe.model.image_features(torch.cat(images)) if images else None
    return ids, real, pipe.model.embed_conversation(ids, mask, features)


def trajectory(pipe: JanusFlowPipeline, name: str, **changed: Any) -> Tensor:
    """The latents (N, B, 4, h, w) after each step of a golden text-to-image case, through the public `generate`."""
    case, seen = PICTURES[name], []
    noise = tensors(f"t2i_{name}")["z0"]
    hook = pipe.model.vision_gen_enc_model.register_forward_pre_hook(
        lambda module, args: seen.append(args[0][: len(noise)])
    )
    try:
        last = pipe.generate(
            case["prompt"],
            **{
                "num_images": case["batch"],
                "steps": case["steps"],
                "noise": noise,
                "guidance": case["cfg"],
                "output": "latent",
                **changed,
            },
        )
    finally:
        hook.remove()
    return torch.stack([*seen[1:], last])


def stored_steps(stored: Mapping[str, Tensor]) -> list[int]:
    """Which steps of a trajectory a golden file holds: all, or those in `z_steps`."""
    return stored["z_steps"].tolist() if "z_steps" in stored else list(range(len(stored["z"])))
