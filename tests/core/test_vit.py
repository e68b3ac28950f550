import pytest
import torch
from golden import MODULE, assert_close, micro_dict, new_model, pipeline, pixels, recipe, tensors
from transformers import SiglipVisionConfig, SiglipVisionModel

from janusflow_core.config import JanusFlowConfig, VisionConfig
from janusflow_core.vit import VisionTransformer


@pytest.mark.parametrize("name", list(tensors("vision_features")))
def test_features_equal_golden(name: str):
    image, stage = name.split(".")
    found = pipeline().model.vision_und_enc_model(pixels(image))
    if stage == "aligned":
        found = pipeline().model.vision_und_enc_aligner(found)
    assert_close(found[0], tensors("vision_features")[name], MODULE)


def test_pictures_in_a_batch_do_not_mix():
    encoder, images = pipeline().model.vision_und_enc_model, ["wide", "gray", "rgba"]
    together = encoder(torch.cat([pixels(name) for name in images]))
    for found, name in zip(together, images, strict=True):
        assert_close(found, tensors("vision_features")[f"{name}.vision_features"], MODULE)


def siglip(shapes: VisionConfig, own: dict[str, torch.Tensor]) -> SiglipVisionModel:
    """transformers' SigLIP with the weights of our encoder."""
    theirs = SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=shapes.width,
            intermediate_size=int(shapes.width * shapes.mlp_ratio),
            hidden_act="gelu",
            num_hidden_layers=shapes.depth,
            num_attention_heads=shapes.heads,
            image_size=shapes.image_size,
            patch_size=shapes.patch_size,
            vision_use_head=False,
        )
    ).eval()
    renamed = {"embeddings.position_embedding.weight": own["pos_embed"][0]}
    names = {
        "norm1": "layer_norm1",
        "norm2": "layer_norm2",
        "attn.proj": "self_attn.out_proj",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    }
    for end in ("weight", "bias"):
        renamed[f"embeddings.patch_embedding.{end}"] = own[f"patch_embed.proj.{end}"]
        renamed[f"post_layernorm.{end}"] = own[f"norm.{end}"]
        for n in range(shapes.depth):
            for ours, its in names.items():
                renamed[f"encoder.layers.{n}.{its}.{end}"] = own[f"blocks.{n}.{ours}.{end}"]
            for letter, part in zip("qkv", own[f"blocks.{n}.attn.qkv.{end}"].chunk(3), strict=True):
                renamed[f"encoder.layers.{n}.self_attn.{letter}_proj.{end}"] = part
    prefix = "vision_model." if any(key.startswith("vision_model.") for key in theirs.state_dict()) else ""
    theirs.load_state_dict({prefix + key: value for key, value in renamed.items()})
    return theirs


@pytest.mark.parametrize(
    "numbers",
    [
        {"image_size": 64, "patch_size": 16, "width": 48, "layers": 3, "heads": 4},
        {"image_size": 56, "patch_size": 14, "width": 32, "layers": 2, "heads": 1, "mlp_ratio": 3.5},
        {"image_size": 24, "patch_size": 8, "width": 40, "layers": 4, "heads": 5, "mlp_ratio": 2, "select_layer": -2},
    ],
    ids=str,
)
@torch.no_grad()
def test_equals_transformers_siglip(numbers: dict):
    shapes = VisionConfig(**numbers)
    ours = VisionTransformer(shapes, torch.nn).eval()
    weights = {key: recipe(key, value.shape, 1) for key, value in ours.state_dict().items()}
    ours.load_state_dict(weights)
    images = recipe("images", (2, 3, shapes.image_size, shapes.image_size), 1)
    assert_close(ours(images), siglip(shapes, weights)(images).last_hidden_state, MODULE)


def test_select_layer_drops_blocks_but_not_the_final_norm():
    data = micro_dict()
    data["vision_und_enc_config"]["params"] |= {"layers": 3, "select_layer": -2}
    fewer = new_model(JanusFlowConfig.from_dict(data), 0)
    data["vision_und_enc_config"]["params"] |= {"layers": 2, "select_layer": -1}
    whole = new_model(JanusFlowConfig.from_dict(data), 0)
    images = recipe("images", (1, 3, 32, 32), 0)
    torch.testing.assert_close(fewer.vision_und_enc_model(images), whole.vision_und_enc_model(images))


def test_aligned_features_follow_the_learnt_begin_vector():
    model = pipeline().model
    found = model.embed_features(model.image_features(pixels("wide")))
    assert found.shape == (1, 577, 96)
    assert_close(found[0, 1:], tensors("vision_features")["wide.aligned"], MODULE)
    torch.testing.assert_close(found[0, 0], model.beg_of_und_embed[0])
