"""A loaded model: a prompt to pictures here, pictures and a question to words in understanding.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from PIL import Image
from torch import Tensor

from . import canvas, image, sampling
from .autoencoder import load_vae_files
from .checkpoint import Checkpoint, OnProgress, load_model, open_checkpoint
from .device import best_device, best_dtype
from .drawing import DrawingConfig
from .guidance import Guidance
from .lora import LoraStack
from .model import JanusFlow, flow_tokens
from .recall import Recall
from .seeds import own_seeds
from .tokenizer import JanusTokenizer
from .understanding import Understanding
from .vae import LatentCodec

Output = Literal["pil", "pixels", "latent"]


class JanusFlowPipeline(Understanding):
    """A loaded JanusFlow: `generate` pictures from words, `describe` pictures in words."""

    def __init__(
        self,
        model: JanusFlow,
        tokenizer: JanusTokenizer,
        image_config: image.ImageConfig,
        codec: LatentCodec | None,
        device: torch.device,
        drawing: DrawingConfig = DrawingConfig(),
    ) -> None:
        self.model, self.tokenizer, self.image_config = model, tokenizer, image_config
        self.codec, self.device, self.drawing = codec, device, drawing
        self._loras, self.recall = LoraStack(model), Recall()

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path = "janusflow-tiny",
        *,
        vae: str | Path | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        loras: Sequence[tuple[str | Path, float]] = (),
        on_progress: OnProgress | None = None,
    ) -> JanusFlowPipeline:
        """Load a bundled name, a folder in the official layout or one .safetensors file; nothing is downloaded.

        `vae`: a diffusers folder or an SDXL VAE file, where the checkpoint brings none. `loras`: paths and strengths,
        as for `load_lora`. `on_progress` hears how many tensors are read, of how many, and may raise. Raises
        FileNotFoundError or ValueError with one sentence that names the file and what to do.
        """
        device = torch.device(device) if device is not None else best_device()
        checkpoint = open_checkpoint(source)
        if checkpoint.tokenizer is None or not checkpoint.has_flow:
            raise ValueError(f"{checkpoint.name} holds half of a JanusFlow only; load a whole checkpoint.")
        model = load_model(checkpoint, dtype or best_dtype(device), device, on_progress)
        codec = _codec(checkpoint, vae, device)
        pipe = cls(model, checkpoint.tokenizer, checkpoint.image, codec, device, checkpoint.drawing)
        for path, strength in loras:
            pipe.load_lora(path, strength)
        return pipe

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> JanusFlowPipeline:
        """Move to a device, convert to a dtype, or both, in place; returns itself. The VAE keeps its own dtype."""
        self.device = torch.device(device) if device is not None else self.device
        self.recall.forget()
        self.model.to(device=self.device, dtype=dtype)
        self.codec = self.codec and self.codec.to(self.device)
        return self

    def load_lora(self, source: str | Path, strength: float = 1.0) -> None:
        """Lay a LoRA (a ComfyUI file, a PEFT folder or a bundled name) upon the weights, beside those that lie there.

        It changes pictures and words; `strength` may be negative. Raises FileNotFoundError or ValueError with one
        sentence, and then nothing has changed.
        """
        self._loras.add(source, strength)
        self.recall.forget()

    def unload_loras(self) -> None:
        """Take all LoRAs off: the weights are as they were."""
        self._loras.clear()
        self.recall.forget()

    def compile(self) -> JanusFlowPipeline:
        """Compile the steps of drawing, in place; returns itself.

        The first picture of each size, number and guidance then takes up to a minute longer, later ones less. Raises
        what `JanusFlow.compile_flow` raises.
        """
        self.model.compile_flow()
        return self

    # --- words to pictures --------------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str | None = None,
        width: int | None = None,
        height: int | None = None,
        num_images: int = 1,
        best_of: int = 1,
        steps: int | None = None,
        guidance: float | None = None,
        guidance_start: float = 0.0,
        guidance_end: float = 1.0,
        guidance_rescale: float = 0.0,
        cfg_zero_star: bool = False,
        solver: str | None = None,
        shift: float = 1.0,
        seed: int | Sequence[int] = 0,
        variation_seed: int | Sequence[int] = 0,
        variation_strength: float = 0.0,
        noise: Tensor | None = None,
        init_image: Image.Image | Tensor | None = None,
        strength: float = 1.0,
        mask: Image.Image | Tensor | None = None,
        differential: bool = False,
        output: Output = "pil",
        on_step: sampling.OnStep | None = None,
    ) -> Any:
        """Draw `num_images` pictures of each prompt; picture k equals a single run with seed + k, or with its own seed
        of several. With `best_of` each is the best by `score` of so many, drawn with the seeds that follow each other.

        Sides are in pixels, multiples of 16. `guidance` 1 means none. Size, steps, guidance and solver that are not
        given are the checkpoint's own (`pipe.drawing`): by default the trained size, and the paper's 30 steps of Euler
        and guidance of 2. See `Guidance` for what else it can be, `sampling` for `solver` and `shift`.
        `variation_strength` in [0, 1] is how far the noise turns to that of `variation_seed`, which counts on as `seed`
        does; `noise` (B, 4, h, w) replaces it. `strength` in (0, 1] is how far `init_image` is dissolved, and `mask` is
        1 where it is painted anew, between 0 and 1 a mix or, if `differential`, from a later moment on. Returns a list
        of PIL pictures, pixels (B, 3, H, W) in [0, 1] or model-scale latents (B, 4, h, w). Raises ValueError for bad
        arguments; `on_step` may raise to cancel.
        """
        if best_of < 1:
            raise ValueError(f"best_of must be at least 1, got {best_of}.")
        rows = [p for p in ([prompt] if isinstance(prompt, str) else prompt) for _ in range(num_images * best_of)]
        self._check_output("pil" if best_of > 1 and output == "latent" else output)
        start = 1.0 - _fraction(strength)
        if init_image is None and (start or mask is not None):
            raise ValueError("mask and strength need init_image: they say what of that picture is painted anew.")
        weight = self.drawing.guidance if guidance is None else guidance
        guided = Guidance(weight, guidance_start, guidance_end, cfg_zero_star, guidance_rescale)
        if not rows:
            raise ValueError("there is nothing to draw: give at least one prompt and num_images of at least 1.")
        if noise is None:
            shape = self._latent_shape(width, height)
            self._check_context(rows, *shape[1:])  # first, because more than it holds may be more than memory does
            seeds, others = (own_seeds(given, len(rows)) for given in (seed, variation_seed))
            noise = canvas.varied_noise(shape, seeds, others, variation_strength)
        noise = self._checked_noise(noise, len(rows)).to(self.device, torch.float32)
        times = sampling.time_grid(self.drawing.steps if steps is None else steps, start, shift)
        z, inpaint = noise, None
        if init_image is not None:
            x = self._latents(init_image, noise)
            z = sampling.interpolate(x, noise, times[0])
            if mask is not None:
                inpaint = sampling.Inpaint(x, canvas.latent_mask(mask, noise), noise, times[0], differential)
        velocity = self.guided_velocity(rows, negative_prompt, guided, noise.shape)
        latents = sampling.integrate(velocity, z, times, solver or self.drawing.solver, inpaint, on_step, noise)
        return self._finish(latents, output, rows, best_of)

    __call__ = generate

    def guided_velocity(
        self, prompts: Sequence[str], negative_prompt: str | None, guidance: Guidance, shape: Sequence[int]
    ) -> sampling.Velocity:
        """The guided velocity of latents of this (B, 4, h, w) shape: a closure over the prompts' keys and values.

        Without a negative prompt the unconditional rows see BOS alone, at the distance of the row they guide.
        """
        embedded = {text: self._embedded(text) for text in {*prompts, negative_prompt or prompts[0]}}
        negatives = [embedded[negative_prompt]] * len(prompts) if negative_prompt else None
        rows = [embedded[prompt] for prompt in prompts]
        height, width = shape[-2:]
        return self.model.guided(rows, negatives, guidance, (height, width), fixed=self.device.type == "cuda")

    def _embedded(self, prompt: str) -> Tensor:
        return self.model.encode_prompt(torch.tensor(self.tokenizer.generation_ids(prompt), device=self.device))

    def _latent_shape(self, width: int | None, height: int | None) -> tuple[int, int, int]:
        trained, own = self.image_config.image_size, self.drawing
        width = (own.width or trained) if width is None else width
        height = (own.height or trained) if height is None else height
        return self.model.config.flow.latent_channels, *canvas.latent_sides(width, height)

    def _check_context(self, prompts: Sequence[str], height: int, width: int) -> None:
        longest = max(len(self.tokenizer.generation_ids(prompt)) for prompt in {*prompts})
        self.model.config.language.check_drawing(longest, flow_tokens(height, width))

    def _checked_noise(self, noise: Tensor, rows: int) -> Tensor:
        channels = self.model.config.flow.latent_channels
        if noise.dim() != 4 or noise.shape[:2] != (rows, channels) or noise.shape[2] % 2 or noise.shape[3] % 2:
            raise ValueError(f"noise must be ({rows}, {channels}, h, w) with even h and w, got {tuple(noise.shape)}.")
        return noise

    def _latents(self, picture: Image.Image | Tensor, like: Tensor) -> Tensor:
        pixels = canvas.start_pixels(picture, (like.shape[3] * 8, like.shape[2] * 8))
        return self.need_codec().encode(pixels).to(like).expand(like.shape)

    def _finish(self, latents: Tensor, output: Output, prompts: Sequence[str], best_of: int) -> Any:
        """What was asked for, of the best of every so many."""
        if output == "latent" and best_of == 1:
            return latents
        pixels = self.need_codec().decode(latents)
        if best_of > 1:
            scores = torch.tensor(self.score(_pictures(pixels), prompts)).view(-1, best_of)
            kept = scores.argmax(dim=1) + torch.arange(0, len(prompts), best_of)
            latents, pixels = latents[kept], pixels[kept]
        return latents if output == "latent" else pixels if output == "pixels" else _pictures(pixels)

    def _check_output(self, output: str) -> None:
        """Raise before the flow what would else be raised after it."""
        if output not in get_args(Output):
            raise ValueError(f"output must be 'pil', 'pixels' or 'latent', got {output!r}.")
        if output != "latent":
            _ = self.need_codec().vae

    def need_codec(self) -> LatentCodec:
        """The VAE, which a checkpoint may lack: then ValueError says how to bring one."""
        if self.codec is None:
            raise ValueError(
                "this checkpoint brings no VAE: pass vae=, the path of an SDXL VAE "
                "(a diffusers folder or a .safetensors file), or ask for output='latent'."
            )
        return self.codec


def _pictures(pixels: Tensor) -> list[Image.Image]:
    return image.from_tensor(pixels.permute(0, 2, 3, 1))


def _fraction(strength: float) -> float:
    if not 0.0 < strength <= 1.0:
        raise ValueError(f"strength must lie in (0, 1], got {strength}.")
    return strength


def _codec(checkpoint: Checkpoint, vae: str | Path | None, device: torch.device) -> LatentCodec | None:
    channels = checkpoint.config.flow.latent_channels
    own = checkpoint.read_vae() if vae is None else load_vae_files(vae).for_model(channels)
    return LatentCodec(own, device=device) if own is not None else None
