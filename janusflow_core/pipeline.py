"""Both directions in a page each: a prompt to pictures, pictures and a question to words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from PIL import Image
from torch import Tensor

from . import canvas, decoding, image, sampling
from .autoencoder import load_vae_files
from .checkpoint import Checkpoint, OnProgress, load_model, open_checkpoint
from .decoding import SamplingOptions
from .device import best_device, best_dtype, free_memory
from .drawing import DrawingConfig
from .guidance import Guidance
from .lora import LoraStack
from .model import JanusFlow
from .tokenizer import JanusTokenizer, Message
from .vae import LatentCodec

Output = Literal["pil", "pixels", "latent"]
Picture = image.Picture | str | PathLike  # in memory, or a file
DEFAULT_QUESTION = "Describe the image."


class JanusFlowPipeline:
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
        self._loras = LoraStack(model)

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

    @property
    def dtype(self) -> torch.dtype:
        return self.model.vision_gen_dec_aligner.weight.dtype

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> JanusFlowPipeline:
        """Move to a device, convert to a dtype, or both, in place; returns itself. The VAE keeps its own dtype."""
        self.device = torch.device(device) if device is not None else self.device
        self.model.to(device=self.device, dtype=dtype)
        self.codec = self.codec and self.codec.to(self.device)
        return self

    def load_lora(self, source: str | Path, strength: float = 1.0) -> None:
        """Lay a LoRA (a ComfyUI file, a PEFT folder or a bundled name) upon the weights, beside those that lie there.

        It changes pictures and words; `strength` may be negative. Raises FileNotFoundError or ValueError with one
        sentence, and then nothing has changed.
        """
        self._loras.add(source, strength)

    def unload_loras(self) -> None:
        """Take all LoRAs off: the weights are as they were."""
        self._loras.clear()

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
        of several.

        Sides are in pixels, multiples of 16. `guidance` 1 means none. Size, steps, guidance and solver that are not
        given are the checkpoint's own (`pipe.drawing`): by default the trained size, and the paper's 30 steps of Euler
        and guidance of 2. See `Guidance` for what else it can be, `sampling` for `solver` and `shift`.
        `variation_strength` in [0, 1] is how far the noise turns to that of `variation_seed`, which counts on as `seed`
        does; `noise` (B, 4, h, w) replaces it. `strength` in (0, 1] is how far `init_image` is dissolved, and `mask` is
        1 where it is painted anew, between 0 and 1 a mix or, if `differential`, from a later moment on. Returns a list
        of PIL pictures, pixels (B, 3, H, W) in [0, 1] or model-scale latents (B, 4, h, w). Raises ValueError for bad
        arguments; `on_step` may raise to cancel.
        """
        rows = [p for p in ([prompt] if isinstance(prompt, str) else prompt) for _ in range(num_images)]
        self._check_output(output)
        start = 1.0 - _fraction(strength)
        if init_image is None and (start or mask is not None):
            raise ValueError("mask and strength need init_image: they say what of that picture is painted anew.")
        weight = self.drawing.guidance if guidance is None else guidance
        guided = Guidance(weight, guidance_start, guidance_end, cfg_zero_star, guidance_rescale)
        if not rows:
            raise ValueError("there is nothing to draw: give at least one prompt and num_images of at least 1.")
        if noise is None:
            seeds, others = (canvas.own_seeds(given, len(rows)) for given in (seed, variation_seed))
            noise = canvas.varied_noise(self._latent_shape(width, height), seeds, others, variation_strength)
        noise = self._checked_noise(noise, len(rows)).to(self.device, torch.float32)
        times = sampling.time_grid(self.drawing.steps if steps is None else steps, start, shift)
        z, inpaint = noise, None
        if init_image is not None:
            x = self._latents(init_image, noise)
            z = sampling.interpolate(x, noise, times[0])
            if mask is not None:
                inpaint = sampling.Inpaint(x, canvas.latent_mask(mask, noise), noise, times[0], differential)
        velocity = self.guided_velocity(rows, negative_prompt, guided, noise.shape)
        latents = sampling.integrate(velocity, z, times, solver or self.drawing.solver, inpaint, on_step)
        return self._finish(latents, output)

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

    def _checked_noise(self, noise: Tensor, rows: int) -> Tensor:
        channels = self.model.config.flow.latent_channels
        if noise.dim() != 4 or noise.shape[:2] != (rows, channels) or noise.shape[2] % 2 or noise.shape[3] % 2:
            raise ValueError(f"noise must be ({rows}, {channels}, h, w) with even h and w, got {tuple(noise.shape)}.")
        return noise

    def _latents(self, picture: Image.Image | Tensor, like: Tensor) -> Tensor:
        pixels = canvas.start_pixels(picture, (like.shape[3] * 8, like.shape[2] * 8))
        return self.need_codec().encode(pixels).to(like).expand(like.shape)

    def _finish(self, latents: Tensor, output: Output) -> Any:
        if output == "latent":
            return latents
        pixels = self.need_codec().decode(latents)
        return pixels if output == "pixels" else image.from_tensor(pixels.permute(0, 2, 3, 1))

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

    # --- pictures to words --------------------------------------------------------------------------------------

    @torch.no_grad()
    def describe(
        self,
        images: Picture | Sequence[Picture],
        question: str = DEFAULT_QUESTION,
        *,
        together: bool = False,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | Sequence[int] = 0,
        on_token: Callable[[str], None] | None = None,
    ) -> Any:
        """Answer a question about a picture (a str), about each of several (a list), or once about all `together`.

        Pictures are PIL images, arrays, tensors or paths of files. `temperature` 0 is greedy; answer k is the one that
        its picture gets alone at seed + k, or at seed[k] of several. `on_token` gets the words of one answer and may
        raise. Raises ValueError for a conversation that does not fit the model, and what `open_image` raises.
        """
        pictures = [images] if isinstance(images, Picture) else list(images)
        once = together or isinstance(images, Picture)
        asked = [pictures] if once else [[picture] for picture in pictures]
        if on_token is not None and len(asked) != 1:
            raise ValueError("on_token follows one answer: give one picture, or together=True.")
        stream, answers = self.tokenizer.stream(), []
        forward = None if on_token is None else (lambda _, token: on_token(stream.push(token)))
        options = SamplingOptions(temperature=temperature, top_p=top_p)
        seeds = range(seed, seed + len(asked)) if isinstance(seed, int) else seed
        at_once = self.at_once(question, max_new_tokens)
        for first in range(0, len(asked), at_once):
            some = asked[first : first + at_once]
            answers += self.converse(
                [self.tokenizer.question_messages(question, len(own)) for own in some],
                some,
                max_new_tokens=max_new_tokens,
                options=options,
                seeds=seeds[first : first + at_once],
                on_token=forward,
            )
        if on_token is not None and (rest := stream.flush()):
            on_token(rest)
        return answers[0] if once else answers

    def at_once(self, question: str, max_new_tokens: int) -> int:
        """About how many pictures can be asked this in one batch, by the memory that is free now."""
        language = self.model.config.language
        tokens = len(self.tokenizer.understanding_ids(self.tokenizer.question_messages(question, 1), 1))
        row = decoding.bytes_a_row(language, tokens + max_new_tokens, self.dtype)
        return decoding.fitting(free_memory(self.device), row)

    @torch.no_grad()
    def converse(
        self,
        conversations: Sequence[Sequence[Message]],
        images: Sequence[Sequence[Picture]],
        *,
        max_new_tokens: int = 512,
        options: SamplingOptions = SamplingOptions(),
        seeds: Sequence[int] | None = None,
        on_token: decoding.OnToken | None = None,
    ) -> list[str]:
        """The next turn of several conversations at once, each with its own pictures; batched equals alone."""
        ids = [
            self.tokenizer.understanding_ids(turns, len(own)) for turns, own in zip(conversations, images, strict=True)
        ]
        tokens, real = (part.to(self.device) for part in self.tokenizer.pad_left(ids))
        self.model.config.language.check_conversation(tokens.shape[1], max_new_tokens)
        pixels = [image.preprocess(_opened(picture), self.image_config) for own in images for picture in own]
        features = self.model.image_features(torch.stack(pixels).to(self.device, self.dtype)) if pixels else None
        embeddings = self.model.embed_conversation(tokens, self.tokenizer.image_mask(tokens) & real, features)
        texts = decoding.generate(
            self.model.language_model.model,
            self.model.logits,
            self.model.encode_prompt,
            embeddings,
            real,
            eos=self.tokenizer.eos_id,
            max_new_tokens=max_new_tokens,
            options=options,
            seeds=seeds,
            on_token=on_token,
            fixed=self.device.type == "cuda",
        )
        return [self.tokenizer.decode(text).strip() for text in texts]


def _opened(picture: Picture) -> image.Picture:
    return image.open_image(picture) if isinstance(picture, (str, PathLike)) else picture


def _fraction(strength: float) -> float:
    if not 0.0 < strength <= 1.0:
        raise ValueError(f"strength must lie in (0, 1], got {strength}.")
    return strength


def _codec(checkpoint: Checkpoint, vae: str | Path | None, device: torch.device) -> LatentCodec | None:
    channels = checkpoint.config.flow.latent_channels
    own = checkpoint.read_vae() if vae is None else load_vae_files(vae).for_model(channels)
    return LatentCodec(own, device=device) if own is not None else None
