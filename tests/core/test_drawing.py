"""What a checkpoint says about drawing: used where the user says nothing, kept in every layout, refused when wrong."""

import json
from pathlib import Path

import pytest
import torch
from golden import MODULE, assert_close, micro, micro_pipeline, recipe
from torch import nn

from janusflow_core import sampling
from janusflow_core.checkpoint import open_checkpoint
from janusflow_core.convert import convert
from janusflow_core.drawing import DrawingConfig, Preview
from janusflow_core.guidance import Guidance
from janusflow_core.layout import describe_files, save_folder
from janusflow_core.pipeline import JanusFlowPipeline


def preview(channels: int = 4, units: int = 5) -> Preview:
    rows = recipe("hidden", (units, 9 * channels + 1), 0), recipe("color", (3, units + 1), 0)
    hidden, color = (tuple(map(tuple, part.tolist())) for part in rows)
    return Preview(hidden=hidden, color=color)


OWN = DrawingConfig(steps=3, guidance=1.5, solver="ab2", width=32, height=48, preview=preview())


def folder(path: Path, drawing: DrawingConfig) -> Path:
    pipe = micro()
    parts = describe_files(pipe.model.config, pipe.tokenizer, pipe.image_config, drawing)
    save_folder(path, pipe.model.state_dict(), parts, pipe.tokenizer.json)
    return path


def test_what_the_user_leaves_out_is_the_checkpoints_own(tmp_path):
    pipe = JanusFlowPipeline.from_pretrained(folder(tmp_path / "own", OWN), device="cpu", dtype=torch.float32)
    found = pipe.generate("a cat", seed=4, output="latent")
    said = micro().generate("a cat", seed=4, steps=3, guidance=1.5, solver="ab2", width=32, height=48, output="latent")
    assert_close(found, said, MODULE)
    other = {"steps": 3, "guidance": 0.0, "solver": "euler", "width": 16, "height": 16}  # zero is a value too
    found, expected = (p.generate("a cat", output="latent", **other) for p in (pipe, micro()))
    assert_close(found, expected, MODULE)


def test_without_a_word_from_the_checkpoint_it_is_the_papers():
    shape, pipe = (1, 4, 4, 4), micro_pipeline()
    velocity = pipe.guided_velocity(["a cat"], None, Guidance(2.0), shape)
    expected = sampling.integrate(velocity, sampling.draw_noise(shape[1:], [0]), sampling.time_grid(30))
    torch.testing.assert_close(pipe.generate("a cat", output="latent"), expected, rtol=0, atol=0)


def test_it_survives_every_layout(tmp_path):
    first = folder(tmp_path / "own", OWN)
    convert(first, tmp_path / "single.safetensors")
    convert(tmp_path / "single.safetensors", tmp_path / "again")
    for path in (first, tmp_path / "single.safetensors", tmp_path / "again"):
        assert open_checkpoint(path).drawing == OWN
    (tmp_path / "again" / "drawing_config.json").unlink()  # the official folder has none
    assert open_checkpoint(tmp_path / "again").drawing == DrawingConfig()


def test_a_preview_is_two_convolutions():
    inner, outer = nn.Conv2d(4, 5, 3, padding=1, padding_mode="replicate"), nn.Conv2d(5, 3, 1)
    latents, rows = recipe("latents", (2, 4, 6, 8), 0), preview()
    with torch.no_grad():
        for layer, values in ((inner, torch.tensor(rows.hidden)), (outer, torch.tensor(rows.color))):
            layer.weight.copy_(values[:, :-1].view_as(layer.weight))
            layer.bias.copy_(values[:, -1])
        expected = outer(torch.nn.functional.silu(inner(latents)))
    assert_close(rows.decode(latents), expected, MODULE)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("steps", 0),
        ("steps", 2.5),
        ("guidance", -1.0),
        ("guidance", "much"),
        ("guidance", float("nan")),
        ("width", 100),
        ("height", 0),
        ("preview", [1, 2]),
        ("preview", {"hidden": [[0.0] * 36], "color": [[0.0, 0.0]] * 3}),
        ("preview", {"hidden": [[0.0] * 37], "color": [[0.0] * 3] * 3}),
        ("preview", {"hidden": [], "color": [[0.0]] * 3}),
        ("preview", {"hidden": [[0.0] * 37, [0.0] * 28], "color": [[0.0] * 3] * 3}),
    ],
)
def test_wrong_values_are_refused(tmp_path, key, value):
    path = folder(tmp_path / "own", OWN)
    (path / "drawing_config.json").write_text(json.dumps({key: value}))
    with pytest.raises(ValueError, match=f"{key} in drawing_config.json is .*, expected .*: correct") as caught:
        open_checkpoint(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_preview_of_other_latents_is_refused(tmp_path):
    with pytest.raises(ValueError, match="own: drawing_config.json previews 7 latent channels, the model has 4"):
        open_checkpoint(folder(tmp_path / "own", DrawingConfig(preview=preview(channels=7))))
