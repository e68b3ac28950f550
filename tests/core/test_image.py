import hashlib
import io
import json
import re
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
from hardness import assert_sentence
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from janusflow_core.image import ImageConfig, from_tensor, open_image, preprocess, resize_and_pad, to_pil

GOLDEN = Path(__file__).parents[1] / "golden"
FOLDERS = {
    "main": GOLDEN / "tiny",
    "clip_mean": GOLDEN / "processor_variants" / "clip_mean",
    "no_normalize": GOLDEN / "processor_variants" / "no_normalize",
}
PROCESSORS = json.loads((GOLDEN / "golden" / "manifest.json").read_text("utf-8"))["preprocess"]["processors"]
# Pillow 13, which recorded the goldens, shrinks a tall picture's rows before its columns; older ones after.
OLD_PILLOW = int(PIL.__version__.split(".")[0]) < 13
ORDER_MATTERS = ("tall", "extreme_tall")
NOISE = np.random.default_rng(0)
CASES = [(name, image) for name, processor in PROCESSORS.items() for image in processor["images"]]


def read_config(name: str) -> ImageConfig:
    return ImageConfig.from_json_dict(read_json(name))


def read_json(name: str) -> dict:
    return json.loads((FOLDERS[name] / "preprocessor_config.json").read_text("utf-8"))


def golden_picture(image: str) -> Image.Image:
    return Image.open(GOLDEN / "images" / f"{image}.png")


def skip_other_order(image: str) -> None:
    if OLD_PILLOW and image in ORDER_MATTERS:
        pytest.skip(f"Pillow {PIL.__version__} resizes columns first, the goldens' Pillow 13 rows")


def sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def test_every_golden_picture_is_a_case():
    assert len(CASES) == 3 * 14


@pytest.mark.parametrize(("name", "image"), CASES)
def test_uint8_pixels_equal_golden(name: str, image: str):
    skip_other_order(image)
    found = np.asarray(resize_and_pad(golden_picture(image), read_config(name)))
    case = PROCESSORS[name]["images"][image]
    if "u8_png" in case:
        np.testing.assert_array_equal(found, np.asarray(Image.open(GOLDEN / case["u8_png"])))
    assert sha256(found.transpose(2, 0, 1)) == case["u8_sha256"]


@pytest.mark.parametrize(("name", "image"), CASES)
def test_pixel_values_equal_golden(name: str, image: str):
    skip_other_order(image)
    found = preprocess(golden_picture(image), read_config(name))
    assert found.dtype == torch.float32 and found.shape == (3, 384, 384)
    assert sha256(found.numpy()) == PROCESSORS[name]["images"][image]["pixel_values_sha256"]


@pytest.mark.parametrize("image", ORDER_MATTERS)
def test_any_pillow_is_close_to_golden(image: str):
    found = np.asarray(resize_and_pad(golden_picture(image), read_config("main"))).astype(int)
    expected = np.asarray(Image.open(GOLDEN / PROCESSORS["main"]["images"][image]["u8_png"]))
    assert np.abs(found - expected).max() <= 8 and (found != expected).mean() < 0.002


@pytest.mark.parametrize("name", FOLDERS)
def test_config_round_trip(name: str):
    config = read_config(name)
    assert list(config.background_color) == PROCESSORS[name]["background_color_used"]
    assert ImageConfig.from_json_dict(config.to_json_dict()) == config
    assert {**read_json(name), "background_color": list(config.background_color)} == config.to_json_dict()


def test_config_defaults_and_unknown_keys():
    assert ImageConfig.from_json_dict({"resample": 3}) == ImageConfig()
    assert ImageConfig.from_json_dict({"image_size": 96}).image_size == 96


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("image_size", "384"),
        ("image_size", True),
        ("image_size", 0),
        ("image_size", [384, 384]),
        ("min_size", 14.0),
        ("min_size", 385),
        ("image_mean", 0.5),
        ("image_mean", [0.5, 0.5]),
        ("image_mean", [0.5, 0.5, 127]),
        ("image_std", [0.5, 0.5, 0]),
        ("image_std", None),
        ("rescale_factor", float("nan")),
        ("do_normalize", "true"),
    ],
)
def test_config_rejects_wrong_values(key: str, value: object):
    with pytest.raises(ValueError, match=f"{key} in preprocessor_config.json is .*, expected .*: correct"):
        ImageConfig.from_json_dict({key: value})


@pytest.mark.parametrize("shape", [(50, 80, 3), (50, 80, 4), (50, 80, 1), (50, 80)])
def test_arrays_and_tensors_are_seen_like_pil(shape: tuple[int, ...]):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    config = ImageConfig(image_size=64)
    expected = preprocess(Image.fromarray(array.squeeze()), config)
    for same in (array, array / 255, torch.from_numpy(array), torch.from_numpy(array).double() / 255):
        assert torch.equal(preprocess(same, config), expected)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_comfy_batch_survives_the_way_to_pil(channels: int):
    pixels = np.arange(256, dtype=np.uint8).repeat(channels * 2).reshape(2, 16, 16, channels, order="F")
    pictures = from_tensor(torch.from_numpy(pixels).float() / 255)
    assert [picture.mode for picture in pictures] == [{1: "L", 3: "RGB", 4: "RGBA"}[channels]] * 2
    found = [np.asarray(picture).reshape(16, 16, channels) for picture in pictures]
    np.testing.assert_array_equal(np.stack(found), pixels)


def test_comfy_batch_rounds_and_clips():
    values = torch.tensor([-0.5, 0.0, 0.9 / 255, 254.4 / 255, 1.0, 1.5]).reshape(1, 1, 6, 1)
    assert np.asarray(from_tensor(values)[0]).tolist() == [[0, 0, 1, 254, 255, 255]]


@pytest.mark.parametrize("shape", [(8, 8, 3), (8, 8), (1, 3, 8, 8), (1, 8, 8, 2), (1, 1, 8, 8, 3)])
def test_comfy_batch_of_wrong_shape(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match=re.escape(f"got images of shape {shape}, expected (batch, height")):
        from_tensor(torch.zeros(shape))


def test_pictures_of_wrong_kind():
    with pytest.raises(TypeError, match="got a picture of type str, expected"):
        to_pil("picture.png")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="type torch.uint8, expected float"):
        from_tensor(torch.zeros(1, 2, 2, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="type int64, expected uint8"):
        to_pil(np.zeros((2, 2, 3), np.int64))
    with pytest.raises(ValueError, match="NaN or infinite"):
        from_tensor(torch.full((1, 2, 2, 3), torch.nan))
    with pytest.raises(ValueError, match=r"shape \(3, 8, 8\), expected"):
        to_pil(np.zeros((3, 8, 8), np.uint8))
    with pytest.raises(ValueError, match="empty picture"):
        to_pil(np.zeros((0, 8, 3), np.uint8))
    with pytest.raises(ValueError, match="empty picture of 0 x 4"):
        to_pil(Image.new("RGB", (0, 4)))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(16, 96))
def test_any_size_fits_the_square(width: int, height: int, size: int):
    config = ImageConfig(image_size=size, image_mean=(0.0, 0.0, 0.0))
    padded = resize_and_pad(Image.new("RGB", (width, height), "white"), config)
    left, upper, right, lower = padded.getbbox() or (0, 0, 0, 0)
    assert padded.size == (size, size) and max(right - left, lower - upper) == size
    assert min(right - left, lower - upper) >= config.min_size
    assert left == (size - (right - left)) // 2 and upper == (size - (lower - upper)) // 2


def test_padding_is_the_truncated_mean():
    wide = Image.new("RGB", (64, 16), "white")
    corner = preprocess(wide, ImageConfig(image_size=64))[:, 0, 0]
    grey = torch.tensor(127 / 255)
    assert torch.equal(corner, ((grey - 0.5) / 0.5).expand(3))
    config = ImageConfig(image_size=64, do_normalize=False)
    assert preprocess(wide, config)[0, 0, 0] == grey


def saved(image: Image.Image, form: str = "PNG", **options: object) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, form, **options)
    file.seek(0)
    return file


def test_open_image_turns_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = open_image(saved(Image.new("RGB", (30, 20), "red"), "JPEG", exif=exif))
    assert turned.size == (20, 30) and turned.mode == "RGB"
    assert resize_and_pad(turned, ImageConfig()).getbbox() == (0, 0, 384, 384)


@pytest.mark.parametrize(("form", "dtype"), [("PNG", np.uint16), ("TIFF", np.uint16), ("TIFF", np.int32)])
def test_open_image_scales_deep_greys(form: str, dtype: type):
    ramp = (np.arange(256) * 257).astype(dtype).reshape(16, 16)
    found = np.asarray(open_image(saved(Image.fromarray(ramp), form)))
    np.testing.assert_array_equal(found, np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2))


@pytest.mark.parametrize("white", [1, 255, 65535])
def test_open_image_scales_float_greys(white: int):
    ramp = (np.arange(256) / 255 * white).astype(np.float32).reshape(16, 16)
    found = np.asarray(open_image(saved(Image.fromarray(ramp), "TIFF")))[..., 0]
    np.testing.assert_array_equal(found, np.arange(256).reshape(16, 16))


def test_open_image_drops_alpha_like_the_reference(tmp_path: Path):
    picture = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    picture.save(tmp_path / "clear.png")
    assert open_image(tmp_path / "clear.png").getpixel((0, 0)) == (10, 20, 30)


def test_open_image_names_what_is_wrong(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="no picture at .*missing.png: check the path"):
        open_image(tmp_path / "missing.png")
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(ValueError, match="text.png is no picture"):
        open_image(tmp_path / "text.png")
    whole = saved(Image.effect_noise((64, 64), 50)).getvalue()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cut.png cannot be read"):
        open_image(tmp_path / "cut.png")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["AVIF", "BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP"])
def test_a_spoilt_picture_opens_or_is_refused_in_one_sentence(form: str):
    if not features.check(form.lower()) and form in ("AVIF", "WEBP"):
        pytest.skip(f"this Pillow cannot write {form}")
    exif = Image.Exif()
    exif[0x112], exif[0x10E] = 6, "a picture"  # turned, and described
    file, picture = io.BytesIO(), Image.fromarray(NOISE.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    picture.save(file, form, **({} if form in ("BMP", "GIF") else {"exif": exif.tobytes()}))

    @given(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=30), st.floats(0, 1))
    def spoil(edits: list[tuple[float, int]], kept: float) -> None:
        data = bytearray(file.getvalue())
        for where, value in edits:
            data[int(where**3 * len(data))] = value  # more often near the beginning, where what matters is
        del data[1 + int(kept * len(data)) :]
        try:
            assert open_image(io.BytesIO(data)).mode == "RGB"
        except ValueError as error:
            assert_sentence(str(error))

    spoil()
