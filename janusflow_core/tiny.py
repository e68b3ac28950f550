"""How the embedded model is made, on two CPU cores: VAE, then understanding encoder, then everything together.

    janusflow train tiny --out runs/tiny                      about two hours on two cores
    janusflow train tiny --out runs/smoke --scale 0.001       a minute: every stage, no use

Its world is shapes.py. Each stage writes its result under `out`; a stage whose result is there is not run again.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn

from . import shapes
from .attention import eager, segment_mask
from .checkpoint import describe_files, save_single
from .config import FlowConfig, JanusFlowConfig, LanguageConfig, VisionConfig
from .image import ImageConfig
from .losses import IGNORE, autoregressive_loss, flow_loss, logit_normal, repa_loss
from .model import JanusFlow, Prefix
from .tokenizer import DEFAULT_SPECIAL, PAD_TOKEN, SYSTEM_PROMPT, JanusTokenizer, ProcessorConfig
from .weights import write_tensors

log = logging.getLogger(__name__)

SIZE = 96  # pixels
REPA_LAYER = 2  # of 6; the paper aligns block 6 of 24
SEEDS = {"vae": 0, "vision": 10**6, "library": 2 * 10**6}  # stages must not see one another's scenes
WEIGHTS = {"flow": 1.0, "repa": 0.5, "answer": 1.0}
SCALING_FACTOR = 0.13025  # as SDXL's VAE, so that latents are interchangeable
# 32 groups because ComfyUI's own autoencoder has that number built in.
VAE = {
    "block_out_channels": (64, 64, 64, 64),
    "layers_per_block": 1,
    "norm_num_groups": 32,
    "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "sample_size": SIZE,
    "scaling_factor": SCALING_FACTOR,
}


def schedule(step: int, steps: int, warmup: int = 50) -> float:
    """Learning-rate factor in (0, 1]: warm up, hold for half of the run, then fall linearly to nearly nothing."""
    return min((step + 1) / warmup, 1.0, max(2.0 * (steps - step) / steps, 0.01))


def render(scenes: Sequence[shapes.Scene]) -> Tensor:
    """Pictures (N, 3, 96, 96) in [-1, 1] of some scenes."""
    pixels = torch.from_numpy(np.stack([shapes.render(scene) for scene in scenes]))
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def draw_scenes(seed: int, count: int) -> list[shapes.Scene]:
    """`count` scenes of the training world: a pure function of `seed`."""
    rng = random.Random(seed)
    return [shapes.sample_training_example(rng)[2] for _ in range(count)]


def crops(pixels: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """One random square of `size` pixels from each picture: (N, 3, size, size)."""
    corners = torch.randint(0, pixels.shape[-1] - size + 1, (len(pixels), 2), generator=generator).tolist()
    return torch.stack([p[:, y : y + size, x : x + size] for p, (y, x) in zip(pixels, corners, strict=True)])


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Make every process see the mean gradient; nothing to do for one."""
    if dist.is_initialized():
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        parts = (flat / dist.get_world_size()).split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


class Optimizer:
    """Muon for hidden matrices and convolutions (flattened), AdamW for everything else, under one schedule."""

    def __init__(
        self,
        named: Iterable[tuple[str, nn.Parameter]],
        muon: Callable[[str], bool],
        steps: int,
        muon_lr: float = 0.02,
        adam_lr: float = 2e-3,
    ) -> None:
        named = list(named)
        self.steps, self.rates = steps, (muon_lr, adam_lr)
        self.hidden = [p for name, p in named if p.dim() >= 2 and muon(name)]
        chosen = {id(p) for p in self.hidden}
        self.views = [nn.Parameter(p.data.view(p.shape[0], -1)) for p in self.hidden]  # shares the weights' memory
        self.muon = torch.optim.Muon(self.views, lr=muon_lr, weight_decay=0.0)
        self.adam = torch.optim.AdamW(
            [p for _, p in named if id(p) not in chosen], lr=adam_lr, betas=(0.9, 0.95), weight_decay=0.0
        )
        self.parameters = [p for _, p in named]

    def step(self, step: int) -> None:
        """Update once from the gradients, then clear them; `step` counts from 0."""
        for optimizer, rate in zip((self.muon, self.adam), self.rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * schedule(step, self.steps)
        average_gradients(self.parameters)
        nn.utils.clip_grad_norm_(self.parameters, 1.0, error_if_nonfinite=True)
        for view, weight in zip(self.views, self.hidden, strict=True):
            view.grad = None if weight.grad is None else weight.grad.view_as(view)
        self.muon.step()
        self.adam.step()
        for weight in self.parameters:
            weight.grad = None


def autoencoder(folder: Path | None = None) -> Any:
    """The embedded model's VAE, new or as trained in `folder`."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    return AutoencoderKL(**VAE) if folder is None else AutoencoderKL.from_pretrained(folder)


def train_vae(out: Path, samples: int, batch: int = 8, kl_weight: float = 2e-4) -> None:
    """Train the KL autoencoder on 40-pixel crops, then scale its latents to deviation 1 / 0.13025."""
    torch.manual_seed(0)
    vae, steps = autoencoder(), samples // batch
    # Posteriors start narrow: at the usual deviation of 1 the noise drowns the untrained means for thousands of steps.
    nn.init.constant_(vae.quant_conv.bias[VAE["latent_channels"] :], -6.0)
    outer = ("encoder.conv_in", "decoder.conv_out", "quant_conv", "post_quant_conv")
    optimizer = Optimizer(vae.named_parameters(), lambda name: not name.startswith(outer), steps)
    generator, started = torch.Generator().manual_seed(0), time.monotonic()
    for step in range(steps):
        x = crops(render(draw_scenes(SEEDS["vae"] + step, batch)), 40, generator)
        posterior = vae.encode(x).latent_dist
        error = F.l1_loss(vae.decode(posterior.sample()).sample, x)
        (error + kl_weight * posterior.kl().mean() / posterior.mean[0].numel()).backward()
        optimizer.step(step)
        if step % 50 == 0 or step == steps - 1:
            log.info("vae step %d/%d  l1 %.4f  %.0f s", step, steps, error.item(), time.monotonic() - started)
    normalise_latents(vae, render(draw_scenes(SEEDS["library"], 64)))
    vae.save_pretrained(out)


@torch.no_grad()
def normalise_latents(vae: Any, x: Tensor) -> None:
    """Fold an affine map into the two 1x1 convolutions: latents of pictures `x` get mean 0, deviation 1 / 0.13025."""
    latents = vae.encode(x).latent_dist.mean
    mean = latents.mean(dim=(0, 2, 3))
    scale = 1 / (SCALING_FACTOR * latents.std(dim=(0, 2, 3)))
    channels = len(mean)
    vae.quant_conv.weight[:channels] *= scale[:, None, None, None]
    vae.quant_conv.bias[:channels] = (vae.quant_conv.bias[:channels] - mean) * scale
    vae.quant_conv.bias[channels:] += 2 * scale.log()
    weight = vae.post_quant_conv.weight  # (4, 4, 1, 1)
    vae.post_quant_conv.bias += (weight * mean[None, :, None, None]).sum(dim=(1, 2, 3))
    weight /= scale[None, :, None, None]


# --- the model's shapes and words -------------------------------------------------------------------------------


def config() -> JanusFlowConfig:
    """5 million parameters in JanusFlow's shape: 96 pixels, 36 picture tokens in both directions."""
    return JanusFlowConfig(
        language=LanguageConfig(
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=6,
            num_attention_heads=6,
            num_key_value_heads=6,
            vocab_size=512,
            max_position_embeddings=1024,
        ),
        vision=VisionConfig(image_size=SIZE, patch_size=16, width=160, layers=4, heads=5, model_name="janusflow_tiny"),
        flow=FlowConfig(channels=96),
    )


def build_tokenizer() -> JanusTokenizer:
    """A byte-level BPE like DeepSeek's, trained on this world's sentences; any other text falls to bytes."""
    rng, texts = random.Random(0), [SYSTEM_PROMPT, "User: x\n\nAssistant: x"] * 50
    for _ in range(4000):
        prompt, _, scene = shapes.sample_training_example(rng)
        texts += [prompt, *(f"{q} {a}" for _, q, a in shapes.questions(scene, rng))]
    processor = ProcessorConfig(num_image_tokens=36)
    tags = [
        DEFAULT_SPECIAL["bos_token"],
        DEFAULT_SPECIAL["eos_token"],
        PAD_TOKEN,
        processor.image_tag,
        processor.image_gen_tag,
        processor.image_start_tag,
        processor.image_end_tag,
    ]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=tags, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    bpe.train_from_iterator(texts, trainer)
    return JanusTokenizer(bpe.to_str(), processor, DEFAULT_SPECIAL)


# --- stage 2: eyes ----------------------------------------------------------------------------------------------


def patch_labels(scenes: Sequence[shapes.Scene]) -> Tensor:
    """What lies under the middle of each 16-pixel patch, (B, 36): 0 for nothing, else 1 + color * 6 + shape."""
    labels, colors = torch.zeros(len(scenes), 6, 6, dtype=torch.long), list(shapes.COLORS)
    middle = torch.arange(6) * 16 + 8
    for row, scene in enumerate(scenes):
        for item in scene.objects:
            near = (middle[:, None] - item.y) ** 2 + (middle[None, :] - item.x) ** 2 < (item.radius + 4) ** 2
            labels[row][near] = 1 + colors.index(item.color) * len(shapes.SHAPES) + shapes.SHAPES.index(item.shape)
    return labels.flatten(1)


def train_vision(out: Path, samples: int, batch: int = 64, lr: float = 1.5e-3) -> None:
    """Teach the understanding encoder shapes and colors by dense labels; later it stays frozen, as in the paper."""
    torch.manual_seed(1)
    model = JanusFlow(config(), flow=False)
    model.init_weights()
    encoder, head = model.vision_und_enc_model, nn.Linear(160, 1 + len(shapes.COLORS) * len(shapes.SHAPES))
    optimizer = torch.optim.AdamW(
        [*encoder.parameters(), *head.parameters()], lr=lr, betas=(0.9, 0.95), weight_decay=0.01
    )
    steps, started = samples // batch, time.monotonic()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * schedule(step, steps)
        scenes = draw_scenes(SEEDS["vision"] + step, batch)
        logits = head(encoder(render(scenes), eager))
        labels = patch_labels(scenes)
        loss = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == steps - 1:
            right = (logits.argmax(-1) == labels)[labels > 0].float().mean().item()
            log.info(
                "vision step %d/%d  loss %.4f  right %.3f  %.0f s",
                step,
                steps,
                loss.item(),
                right,
                time.monotonic() - started,
            )
    write_tensors(out, {f"vision_und_enc_model.{k}": v for k, v in encoder.state_dict().items()})


# --- stage 3: both directions together --------------------------------------------------------------------------


@dataclass
class Library:
    """Pictures of the training world, encoded once: model-scale latents (N, 4, 12, 12) and features (N, 36, 160)."""

    latents: Tensor
    features: Tensor
    scenes: list[shapes.Scene]
    prompts: list[str]

    @classmethod
    def build(cls, cache: Path, vae: Any, encoder: nn.Module, count: int, batch: int = 32) -> Library:
        """Draw `count` scenes and encode them, or read the encodings of an earlier run from the file `cache`."""
        rng = random.Random(SEEDS["library"])
        examples = [shapes.sample_training_example(rng) for _ in range(count)]
        if not cache.exists():
            write_tensors(cache, encode_scenes([scene for _, _, scene in examples], vae, encoder, batch))
        stored = load_file(cache)
        return cls(stored["latents"], stored["features"], [e[2] for e in examples], [e[0] for e in examples])


@torch.no_grad()
def encode_scenes(scenes: Sequence[shapes.Scene], vae: Any, encoder: nn.Module, batch: int) -> dict[str, Tensor]:
    """Model-scale latents and understanding features of rendered scenes, in float16."""
    latents, features = [], []
    for first in range(0, len(scenes), batch):
        x = render(scenes[first : first + batch])
        latents.append((vae.encode(x).latent_dist.mean * SCALING_FACTOR).half())
        features.append(encoder(x, eager).half())
        if first % (20 * batch) == 0:
            log.info("library %d/%d", first, len(scenes))
    return {"latents": torch.cat(latents), "features": torch.cat(features)}


def prompt_for(library: Library, index: int, rng: random.Random) -> str:
    """The prompt that a scene was drawn for, or its caption after one of the usual openings."""
    if rng.random() < 0.5:
        return library.prompts[index]
    return rng.choice(shapes.PREFIXES) + shapes.caption(library.scenes[index])


def generation_terms(
    model: JanusFlow,
    projector: nn.Module,
    tokenizer: JanusTokenizer,
    library: Library,
    indices: Sequence[int],
    rng: random.Random,
) -> dict[str, Tensor]:
    """Flow and alignment loss (B,) of some scenes; every tenth prompt is dropped to BOS, as inference drops it."""
    ids = [tokenizer.generation_ids(prompt_for(library, i, rng)) for i in indices]
    kept = [row if rng.random() >= 0.1 else row[:1] for row in ids]
    rows = [model.encode_prompt(torch.tensor(row)) for row in kept]
    x = library.latents[list(indices)].float()
    noise, t = torch.randn_like(x), logit_normal(len(x))
    at = t[:, None, None, None]
    z = at * x + (1 - at) * noise
    hidden: list[Tensor] = []
    hook = model.language_model.model.layers[REPA_LAYER - 1].register_forward_hook(lambda *call: hidden.append(call[2]))
    try:
        v = model.velocity(z, t, Prefix.join(rows, [len(row) for row in ids]), eager)
    finally:
        hook.remove()
    target = library.features[list(indices)].float()
    return {"flow": flow_loss(v, x, noise), "repa": repa_loss(projector(hidden[0][:, -target.shape[1] :]), target)}


def conversation(
    tokenizer: JanusTokenizer, asked: Sequence[tuple[str, str, str]]
) -> tuple[list[int], list[list[int]], list[list[int]]]:
    """Ids of a picture's common beginning, and of each question with its answer, whose other labels are IGNORE."""
    end, start, segments, labels = tokenizer.image_end_id, [], [], []
    for _, question, answer in asked:
        ids = tokenizer.understanding_ids(tokenizer.question_messages(question, 1), 1)
        split = ids.index(end) + 1
        reply = [*tokenizer.encode(" " + answer, bos=False), tokenizer.eos_id]
        start = ids[:split]
        segments.append(ids[split:] + reply)
        # The label of a position is the token after it; the last position has none.
        labels.append([IGNORE] * (len(ids) - split - 1) + reply + [IGNORE])
    return start, segments, labels


def understanding_terms(
    model: JanusFlow,
    tokenizer: JanusTokenizer,
    library: Library,
    indices: Sequence[int],
    rng: random.Random,
    questions: int = 4,
) -> dict[str, Tensor]:
    """Response loss (B,): questions that share a picture are hidden from one another, or they would leak answers."""
    rows = []
    for i in indices:
        asked = shapes.questions(library.scenes[i], rng)
        rows.append(conversation(tokenizer, rng.sample(asked, min(questions, len(asked)))))
    length = max(len(start) + sum(map(len, segments)) for start, segments, _ in rows)
    shape = (len(rows), length)
    ids, labels = torch.full(shape, tokenizer.pad_id), torch.full(shape, IGNORE)
    positions, segment = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    for row, (start, segments, answers) in enumerate(rows):
        at = len(start)
        ids[row, :at], positions[row, :at] = torch.tensor(start), torch.arange(at)
        for number, (tokens, answer) in enumerate(zip(segments, answers, strict=True), start=1):
            here = slice(at, at + len(tokens))
            ids[row, here], labels[row, here], segment[row, here] = torch.tensor(tokens), torch.tensor(answer), number
            positions[row, here] = len(start) + torch.arange(len(tokens))
            at += len(tokens)
    patches = model.vision_und_enc_aligner(library.features[list(indices)].float())
    images = torch.cat((model.beg_of_und_embed.expand(len(rows), 1, -1), patches), dim=1).flatten(0, 1)
    embeddings = model.encode_prompt(ids).masked_scatter(tokenizer.image_mask(ids)[..., None], images.float())
    hidden = model.language_model.model(embeddings, positions, segment_mask(segment), None, eager)
    return {"answer": autoregressive_loss(model.logits(hidden), labels)}


def is_hidden(name: str) -> bool:
    """Weights for Muon: matrices between hidden features; not tables, norms, depthwise filters or outermost layers."""
    outer = ("embed_tokens", "lm_head", "in_conv", "unpatch_conv", "depthwise", "channelwise_norm", "beg_of_und")
    return not any(part in name for part in outer)


def new_projector(config: JanusFlowConfig) -> nn.Module:
    """The paper's three-layer head from hidden states to the understanding encoder's features."""
    hidden = config.language.hidden_size
    wide = [nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU()]
    return nn.Sequential(*wide, nn.Linear(hidden, config.vision.width))


def train_joint(out: Path, vae: Any, vision: Path, library: Library, samples: int, batch: int = 96) -> None:
    """Train both directions at once, all but the VAE and the frozen eyes; writes the single file `out`.

    `batch` pictures a step, and an eighth as many to ask about, divided among the processes.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    torch.manual_seed(2)
    tokenizer, model = build_tokenizer(), JanusFlow(config())
    model.init_weights()
    model.load_state_dict(load_file(vision), strict=False)
    model.vision_und_enc_model.requires_grad_(False)
    projector = new_projector(model.config)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    average = {name: p.detach().clone() for name, p in trained.items()}
    steps, started = samples // batch, time.monotonic()
    optimizer = Optimizer([*trained.items(), *projector.named_parameters("projector")], is_hidden, steps)
    torch.manual_seed(3 + rank)
    rng, everything = random.Random(3 + rank), range(len(library.scenes))
    for step in range(steps):
        terms = generation_terms(model, projector, tokenizer, library, rng.sample(everything, batch // world), rng)
        asked = rng.sample(everything, batch // world // 8)
        terms |= understanding_terms(model, tokenizer, library, asked, rng)
        means = {name: term.mean() for name, term in terms.items()}
        torch.stack([WEIGHTS[name] * mean for name, mean in means.items()]).sum().backward()
        optimizer.step(step)
        with torch.no_grad():
            for name, weight in trained.items():
                average[name].lerp_(weight, 0.01)  # EMA 0.99, as the paper's
        if rank == 0 and (step % 50 == 0 or step == steps - 1):
            shown = "  ".join(f"{name} {mean.item():.4f}" for name, mean in means.items())
            log.info("joint step %d/%d  %s  %.0f s", step, steps, shown, time.monotonic() - started)
        if rank == 0 and (step % 500 == 499 or step == steps - 1):
            save(out, model, {**model.state_dict(), **average}, tokenizer, vae)


def save(out: Path, model: JanusFlow, weights: Mapping[str, Tensor], tokenizer: JanusTokenizer, vae: Any) -> None:
    """Write the embedded checkpoint: the model in bfloat16, the VAE in float16, which stores it but never computes."""
    parts = describe_files(model.config, tokenizer, ImageConfig(image_size=SIZE))
    save_single(
        out,
        {k: v.to(torch.bfloat16) for k, v in weights.items()},
        parts,
        tokenizer.json,
        {**VAE, "_class_name": "AutoencoderKL"},
        {k: v.half() for k, v in vae.state_dict().items()},
    )


def train(out: Path, scale: float = 1.0) -> Path:
    """Run all stages, each unless its result is there; `scale` shrinks every one of them. Returns the checkpoint.

    Started by torchrun, the first process makes what the others wait for, and all share the last stage.
    """
    paths = out / "vae", out / "vision.safetensors", out / "janusflow-tiny.safetensors"
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():
        dist.init_process_group("gloo", timeout=timedelta(hours=12))
    if not dist.is_initialized() or dist.get_rank() == 0:
        prepare(out, *paths[:2], scale)
    if dist.is_initialized():
        dist.barrier()
    if not paths[2].exists():
        vae, library = prepare(out, *paths[:2], scale)
        train_joint(paths[2], vae, paths[1], library, max(int(150_000 * scale), 640))
    return paths[2]


def prepare(out: Path, vae: Path, vision: Path, scale: float) -> tuple[Any, Library]:
    """The first two stages and the encoded scenes, made or read."""
    out.mkdir(parents=True, exist_ok=True)
    if not vae.exists():
        train_vae(vae, max(int(24_000 * scale), 80))
    if not vision.exists():
        train_vision(vision, max(int(60_000 * scale), 640))
    codec, eyes = autoencoder(vae), JanusFlow(config(), flow=False).vision_und_enc_model
    eyes.load_state_dict({k.removeprefix("vision_und_enc_model."): v for k, v in load_file(vision).items()})
    count = max(int(14_000 * scale), 320)
    return codec, Library.build(out / f"library_{count}.safetensors", codec, eyes, count)
