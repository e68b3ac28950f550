"""How the embedded model is made, on two CPU cores: VAE, then understanding encoder, then everything together.

    janusflow train tiny --out runs/tiny                      about two hours on two cores
    janusflow train tiny --out runs/smoke --scale 0.001       a minute: every stage, no use

Each stage writes its result under `out`; a stage whose result is there is not run again.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn

from ..attention import eager
from ..config import FlowConfig, JanusFlowConfig, LanguageConfig, VisionConfig
from ..drawing import DrawingConfig
from ..image import ImageConfig
from ..layout import describe_files, save_single
from ..model import JanusFlow, Prefix
from ..tokenizer import DEFAULT_SPECIAL, PAD_TOKEN, SYSTEM_PROMPT, JanusTokenizer, ProcessorConfig
from ..train.data import conversation, pack
from ..train.optimizer import Optimizer, is_hidden, schedule
from ..train.terms import generation_terms, new_projector, understanding_terms
from ..weights import write_tensors
from . import talk
from .codec import VAE, autoencoder, fit_preview, train_vae
from .library import SEEDS, Library, draw_scenes, pictures, prompts_to_draw
from .scenes import COLORS, FRAME, SHAPES, Scene

log = logging.getLogger(__name__)

GUIDANCE = 2.5  # less leaves things out, more draws some twice
QUESTIONS = 4  # about one picture, in one row
REPA_LAYER = 2  # of 6; the paper aligns block 6 of 24
WEIGHTS = {"flow": 1.0, "repa": 0.5, "answer": 1.0}


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
        vision=VisionConfig(image_size=FRAME, patch_size=16, width=160, layers=4, heads=5, model_name="janusflow_tiny"),
        flow=FlowConfig(channels=96),
    )


def build_tokenizer() -> JanusTokenizer:
    """A byte-level BPE like DeepSeek's, trained on this world's sentences; any other text falls to bytes."""
    rng, texts = random.Random(0), [SYSTEM_PROMPT, "User: x\n\nAssistant: x"] * 50
    for _ in range(4000):
        prompt, _, scene = talk.sample_training_example(rng)
        texts += [prompt, *(f"{q} {a}" for _, q, a in talk.questions(scene, rng))]
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


def patch_labels(scenes: Sequence[Scene]) -> Tensor:
    """What lies under the middle of each 16-pixel patch, (B, 36): 0 for nothing, else 1 + color * 6 + shape."""
    labels, colors = torch.zeros(len(scenes), 6, 6, dtype=torch.long), list(COLORS)
    middle = torch.arange(6) * 16 + 8
    for row, scene in enumerate(scenes):
        for item in scene.objects:
            near = (middle[:, None] - item.y) ** 2 + (middle[None, :] - item.x) ** 2 < (item.radius + 4) ** 2
            labels[row][near] = 1 + colors.index(item.color) * len(SHAPES) + SHAPES.index(item.shape)
    return labels.flatten(1)


def train_vision(out: Path, samples: int, batch: int = 64, lr: float = 1.5e-3) -> None:
    """Teach the understanding encoder shapes and colors by dense labels; later it stays frozen, as in the paper."""
    torch.manual_seed(1)
    model = JanusFlow(config(), flow=False)
    model.init_weights()
    encoder, head = model.vision_und_enc_model, nn.Linear(160, 1 + len(COLORS) * len(SHAPES))
    optimizer = torch.optim.AdamW(
        [*encoder.parameters(), *head.parameters()], lr=lr, betas=(0.9, 0.95), weight_decay=0.01
    )
    steps, started = samples // batch, time.monotonic()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * schedule(step, steps)
        scenes = draw_scenes(SEEDS["vision"] + step, batch)
        logits = head(encoder(pictures(scenes), eager))
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


def drawing_terms(
    model: JanusFlow,
    projector: nn.Module,
    tokenizer: JanusTokenizer,
    library: Library,
    indices: Sequence[int],
    rng: random.Random,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Flow and alignment loss (B,) of some scenes; `rng` draws words, `generator` noise and times."""
    ids, lengths = prompts_to_draw(library, indices, tokenizer, rng)
    prompts = Prefix.join([model.encode_prompt(torch.tensor(row)) for row in ids], lengths)
    x, features = library.latents[list(indices)].float(), library.features[list(indices)].float()
    return generation_terms(
        model, projector, prompts, x, features, layer=REPA_LAYER, generator=generator, attention=eager
    )


def answering_terms(
    model: JanusFlow, tokenizer: JanusTokenizer, library: Library, indices: Sequence[int], rng: random.Random
) -> dict[str, Tensor]:
    """Response loss (B,) of up to QUESTIONS questions about each of some scenes."""
    rows = []
    for i in indices:
        asked = [(question, answer) for _, question, answer in talk.questions(library.scenes[i], rng)]
        rows.append(conversation(tokenizer, rng.sample(asked, min(QUESTIONS, len(asked)))))
    return understanding_terms(model, pack(rows, tokenizer), library.features[list(indices)].float(), eager)


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
    rng, generator = random.Random(3 + rank), torch.Generator().manual_seed(3 + rank)
    everything = range(len(library.scenes))
    for step in range(steps):
        drawn = rng.sample(everything, batch // world)
        terms = drawing_terms(model, projector, tokenizer, library, drawn, rng, generator)
        terms |= answering_terms(model, tokenizer, library, rng.sample(everything, batch // world // 8), rng)
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


def drawing_config(vae: Any) -> DrawingConfig:
    """What suits the embedded model, and the preview of its latents."""
    return DrawingConfig(guidance=GUIDANCE, preview=fit_preview(vae, pictures(draw_scenes(SEEDS["library"], 400))))


def save(out: Path, model: JanusFlow, weights: Mapping[str, Tensor], tokenizer: JanusTokenizer, vae: Any) -> None:
    """Write the embedded checkpoint: the model in bfloat16, the VAE in float16, which stores it but never computes."""
    parts = describe_files(model.config, tokenizer, ImageConfig(image_size=FRAME), drawing_config(vae))
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
    if "WORLD_FRAME" in os.environ and not dist.is_initialized():
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
