"""The model's view of a picture: files and tensors to PIL, then the authors' resize, pad and normalise."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from os import PathLike
from pathlib import Path
from typing import IO, Annotated, Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor

from .values import Part, printable, validated

Picture = Image.Image | np.ndarray | Tensor
AnyPicture = Picture | str | PathLike  # in memory, or a file
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


Share = Annotated[float, Field(ge=0, le=1)]
Spread = Annotated[float, Field(ge=1e-3)]


class ImageConfig(Part):
    """The values of preprocessor_config.json; sizes in pixels, mean and std on the [0, 1] scale."""

    image_size: int = Field(default=384, gt=0)
    min_size: int = Field(default=14, gt=0)
    image_mean: tuple[Share, Share, Share] = (0.5, 0.5, 0.5)
    image_std: tuple[Spread, Spread, Spread] = (0.5, 0.5, 0.5)
    rescale_factor: float = Field(default=1 / 255, gt=0, le=1)
    do_normalize: bool = True

    @field_validator("min_size")
    @classmethod
    def _fits(cls, value: int, others: ValidationInfo) -> int:
        if value > others.data.get("image_size", value):
            raise ValueError(f"at most image_size ({others.data['image_size']})")
        return value

    @property
    def background_color(self) -> tuple[int, int, int]:
        """The 8-bit RGB padding: the mean, truncated, whatever background_color a file names."""
        red, green, blue = (int(v * 255) for v in self.image_mean)
        return red, green, blue

    @classmethod
    def from_json_dict(cls, values: Mapping[str, Any]) -> ImageConfig:
        """Read a parsed preprocessor_config.json; other keys are ignored, wrong values raise ValueError."""
        return validated(cls, values, "preprocessor_config.json")

    def to_json_dict(self) -> dict[str, Any]:
        """The content of an official preprocessor_config.json with these values."""
        names = {"image_processor_type": "VLMImageProcessor", "processor_class": "VLChatProcessor"}
        return {**names, "background_color": list(self.background_color), **self.model_dump(mode="json")}


def preprocess(image: Picture, config: ImageConfig) -> Tensor:
    """The vision encoder's float32 input (3, S, S) for one picture of any kind that `to_pil` takes."""
    pixels = np.asarray(resize_and_pad(image, config)).transpose(2, 0, 1)
    # Rescaling in float64 and rounding once is what makes the bits equal to the authors'.
    values = (pixels.astype(np.float64) * config.rescale_factor).astype(np.float32)
    if config.do_normalize:
        mean = np.array(config.image_mean, dtype=np.float32)[:, None, None]
        std = np.array(config.image_std, dtype=np.float32)[:, None, None]
        values = (values - mean) / std
    return torch.from_numpy(np.ascontiguousarray(values))


def resize_and_pad(image: Picture, config: ImageConfig) -> Image.Image:
    """An RGB picture of S x S, longer side scaled to S, centred on the background; no alpha, no EXIF."""
    image = to_pil(image).convert("RGB")
    longest = max(image.size)
    # Truncation in this order of float operations: 213/640 gives 127 rows, not 128.
    width, height = (max(int(side / longest * config.image_size), config.min_size) for side in image.size)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    square = Image.new("RGB", (config.image_size, config.image_size), config.background_color)
    square.paste(resized, ((config.image_size - width) // 2, (config.image_size - height) // 2))
    return square


def to_pil(image: Picture) -> Image.Image:
    """A PIL image as it is, or one from an array or tensor (H, W) or (H, W, C): uint8, or float in [0, 1]."""
    if isinstance(image, Image.Image):
        found = image
    elif isinstance(image, Tensor):
        found = _array_to_pil(_tensor_to_array(image))
    elif isinstance(image, np.ndarray):
        found = _array_to_pil(image)
    else:
        kind = type(image).__name__
        raise TypeError(f"got a picture of type {kind}, expected a PIL image, an array or a tensor: open it first")
    if not found.width or not found.height:
        raise ValueError(f"got an empty picture of {found.width} x {found.height} pixels, expected 1 x 1 or more")
    return found


def from_tensor(images: Tensor) -> list[Image.Image]:
    """PIL images of a batch (B, H, W, C), float in [0, 1], rounded to 8 bits; ComfyUI's IMAGE type."""
    if images.ndim != 4 or images.shape[-1] not in (1, 3, 4):
        raise ValueError(
            f"got images of shape {tuple(images.shape)}, expected (batch, height, width, channels) "
            "with 1, 3 or 4 channels: add the batch axis, or move the channels to the end"
        )
    if not images.is_floating_point():
        raise ValueError(f"got images of type {images.dtype}, expected float from 0 to 1: divide 8 bits by 255")
    return [to_pil(image) for image in images]


def pixels(image: Picture) -> Tensor:
    """Channels first (C, H, W), float32 in [0, 1], of one picture in its own size and mode."""
    array = np.asarray(to_pil(image), dtype=np.float32) / 255
    return torch.from_numpy(array if array.ndim == 3 else array[..., None]).permute(2, 0, 1)


def open_image(source: str | PathLike[str] | IO[bytes], name: str = "") -> Image.Image:
    """An RGB picture of a user's file, upright by its EXIF tag, 16-bit and float greys scaled to 8 bits.

    Transparency is dropped, not blended, as the model's training did. Raises FileNotFoundError, or ValueError
    for a file that Pillow cannot read, under its own or another `name`.
    """
    try:
        with Image.open(source) as image:
            return _to_8_bit(ImageOps.exif_transpose(image)).convert("RGB")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no picture at {printable(name or source)}: check the path") from error
    except UnidentifiedImageError as error:
        raise ValueError(
            f"{printable(name or source)} is no picture that Pillow can read: convert it to PNG or JPEG"
        ) from error
    except Exception as error:  # a decoder that meets nonsense raises struct.error, IndexError or anything else
        reason = printable(error)[:200] or type(error).__name__
        raise ValueError(f"the picture {printable(name or source)} cannot be read ({reason}): save it again") from error


def opened(picture: AnyPicture) -> Picture:
    """A picture in memory, from its file if need be; raises what `open_image` raises."""
    return open_image(picture) if isinstance(picture, (str, PathLike)) else picture


def open_as_seen(source: str | PathLike[str], config: ImageConfig) -> Image.Image:
    """A picture file as small as the model sees it, for batches: photographs as they are would fill the memory.

    Raises what `open_image` raises.
    """
    return resize_and_pad(open_image(source), config)


def pictures_below(folder: Path) -> list[Path]:
    """Files in a folder and below it that are called like pictures, by name; nothing that is hidden."""
    return files_below(folder, SUFFIXES)


def files_below(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """Files in a folder and below it with one of these endings in small letters, by name; nothing that is hidden."""

    def shown(path: Path) -> bool:
        return not any(part.startswith(".") for part in path.relative_to(folder).parts)

    found = (path for path in folder.rglob("*") if path.suffix.lower() in suffixes)
    return sorted(path for path in found if shown(path) and path.is_file())


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Greys of 16 bits, 32-bit integers or floats as mode L; Pillow's own conversion clips them at 255."""
    if image.mode != "F" and image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    values = np.nan_to_num(np.asarray(image).astype(np.float64))
    # Integer greys come from 16-bit files. A float file names no white: the first that holds all values.
    whites = (1, 255, 65535) if image.mode == "F" else (65535,)
    white = next((w for w in whites if values.max() <= w), whites[-1])
    return Image.fromarray(np.rint(values.clip(0, white) * (255 / white)).astype(np.uint8))


def _tensor_to_array(image: Tensor) -> np.ndarray:
    image = image.detach().cpu()
    return (image.float() if image.is_floating_point() else image).numpy()


def _array_to_pil(array: np.ndarray) -> Image.Image:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (1, 3, 4)):
        raise ValueError(
            f"got a picture of shape {array.shape}, expected (height, width) or (height, width, channels) "
            "with 1, 3 or 4 channels: hand in one picture, channels last"
        )
    if not array.size:
        raise ValueError(f"got an empty picture of shape {array.shape}, expected at least 1 x 1 pixels")
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    return Image.fromarray(np.ascontiguousarray(_to_uint8(array)))


def _to_uint8(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"got a picture of type {array.dtype}, expected uint8 or float from 0 to 1: convert it")
    if not np.isfinite(array).all():
        raise ValueError("got a picture with NaN or infinite values, expected 0 to 1: mend what made it")
    return np.rint(array.clip(0, 1) * 255).astype(np.uint8)
