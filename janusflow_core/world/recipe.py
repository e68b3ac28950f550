"""How the embedded model is made: VAE, understanding encoder, everything together, one word; each for its minutes.

    janusflow train tiny --out runs/tiny --minutes 100              from nothing; the same command goes on after a stop
    janusflow train tiny --out runs/more --minutes 60 --from FILE   all but the VAE of a checkpoint like it, further
    janusflow train tiny --out runs/smoke --minutes 1               every stage, to no use

Each stage keeps its state under `out`; a stage whose result is there is not run again.
"""

from __future__ import annotations

import itertools
import logging
import os
import random
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from ..autoencoder import Autoencoder
from ..checkpoint import Checkpoint, load_model, open_checkpoint
from ..config import FlowConfig, JanusFlowConfig, LanguageConfig, VisionConfig
from ..device import best_device
from ..drawing import DrawingConfig
from ..image import ImageConfig
from ..layout import describe_files, save_single
from ..model import JanusFlow
from ..tokenizer import DEFAULT_SPECIAL, PAD_TOKEN, SYSTEM_PROMPT, JanusTokenizer, ProcessorConfig
from ..train.ahead import ahead
from ..train.loop import Budget, Stage, fit, streams
from ..train.machine import Machine, quiet_norms, rank, training_attention, wait_for_all, world
from ..train.optimizer import Optimizer, is_hidden, schedule
from ..train.terms import Terms, new_projector
from . import talk
from .codec import VAE, autoencoder, fit_preview, train_vae
from .eyes import train_eyes
from .lessons import Lessons
from .library import CHUNK, SEEDS, Library, draw_scenes, pictures, seed_of
from .scenes import FRAME
from .word import learn_word

log = logging.getLogger(__name__)

# Less guidance leaves things out, more draws some twice; without new noise numbers and places are wrong more often.
GUIDANCE, SOLVER = 3.0, "renoise"
REPA_LAYER = 2  # of 6; the paper aligns block 6 of 24
WEIGHTS = {"flow": 1.0, "repa": 0.5, "answer": 2.0}
# A prompt changes what is drawn between t = 0.1 and 0.4, where the paper's times seldom are: flat shapes show early.
TIME_MEAN = -0.8
DRAWN = 192  # pictures a step to draw, on a CPU
SHARES = {"vae": 0.22, "eyes": 0.15, "word": 0.05}  # of the minutes; the rest is for everything together


@dataclass(frozen=True)
class Means:
    """What a kind of machine affords.

    `library` scenes encoded beforehand at most, and `library_a_minute`. `asked` are asked about in a step of the last
    stage: fewer where so many pictures are seen that answers are learnt long before drawing. That stage is compiled in
    runs of at least `compiling_pays` minutes, with `all_compiled` those before it too. What is trained already starts
    at the part `again` of the full rate: all of it would undo much of what a model knows, where there is no time to
    mend that.
    """

    library: int
    library_a_minute: int
    asked: int
    compiling_pays: float
    all_compiled: bool
    again: float


CPU = Means(library=48_000, library_a_minute=480, asked=48, compiling_pays=10.0, all_compiled=True, again=0.7)
# Compiling took a minute and a half for the last stage on an H100, and as long as the whole stage for the eyes.
GPU = Means(library=192_000, library_a_minute=24_000, asked=24, compiling_pays=5.0, all_compiled=False, again=1.0)


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


# --- everything together ----------------------------------------------------------------------------------------


def train_joint(
    out: Path, model: JanusFlow, vae: Any, library: Library, machine: Machine, budget: Budget, asked: int, peak: float
) -> None:
    """Train both directions at once, all but the VAE and the frozen eyes; writes the checkpoint `out` at the end."""
    torch.manual_seed(2)
    seed = seed_of("joint", model)
    tokenizer, projector = build_tokenizer(), new_projector(model.config).to(machine.device)
    model.vision_und_enc_model.requires_grad_(False)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    everything = {**trained, **dict(projector.named_parameters("projector"))}
    state = out.with_name("joint.state.safetensors")
    optimizer = Optimizer(everything.items(), is_hidden, compiled=machine.recorded)
    stage = Stage("joint", state, everything, optimizer, WEIGHTS, lambda part, step: peak * schedule(part, step, 0.3))
    drawing = drawing_config(vae) if rank() == 0 else DrawingConfig()
    draw, ask = (count // world() * machine.times for count in (DRAWN, asked))
    written = Lessons(seed, tokenizer, library.examples, draw, ask)
    lessons = ahead(written, itertools.count(stage.step), machine.workers)

    def terms(step: int) -> dict[str, Tensor]:
        lesson, (_, generator) = next(lessons).to(machine.device), streams(seed, step, machine.device)
        x, seen = library.latents[lesson.drawn].float(), library.features[lesson.drawn].float()
        with machine.autocast():
            found = parts.generation(lesson.prompts.embedded(model), x, seen, generator)
            return found | parts.understanding(lesson.questions, library.features[lesson.asked].float())

    def write_to(path: Path) -> None:
        if rank() == 0:
            average = {name: stage.average[name] for name in trained}
            write(path, model, {**model.state_dict(), **average}, tokenizer, vae, drawing)

    def save() -> None:
        stage.save()
        write_to(out.with_name("latest.safetensors"))

    # Attention written out is the faster one on a CPU, above all in its backward pass.
    attention = training_attention(machine.device)
    with Terms(model, model, projector, REPA_LAYER, attention, machine.compiled, TIME_MEAN) as parts:
        fit(stage, budget, terms, save)
    write_to(out)


def finish(out: Path, checkpoint: Checkpoint, library: Library, machine: Machine, budget: Budget) -> None:
    """Let a checkpoint learn its one word anew, all else as it is; writes the checkpoint `out`."""
    (model, vae), tokenizer = _from(checkpoint), checkpoint.tokenizer
    assert tokenizer is not None  # `write` wrote it
    model = model.to(machine.device)
    learn_word(out.with_name("word.state.safetensors"), model, tokenizer, library, machine, budget)
    if rank() == 0:
        write(out, model, model.state_dict(), tokenizer, vae, checkpoint.drawing)


def drawing_config(vae: Any) -> DrawingConfig:
    """What suits the embedded model, and the preview of its latents."""
    x = pictures(draw_scenes(SEEDS["library"], 400)).to(vae.device)
    return DrawingConfig(guidance=GUIDANCE, solver=SOLVER, preview=fit_preview(vae, x))


def write(
    out: Path,
    model: JanusFlow,
    weights: Mapping[str, Tensor],
    tokenizer: JanusTokenizer,
    vae: Any,
    drawing: DrawingConfig,
) -> None:
    """Write the embedded checkpoint: the model in bfloat16, the VAE in float16, which stores it but never computes."""
    parts = describe_files(model.config, tokenizer, ImageConfig(image_size=FRAME), drawing)
    save_single(
        out,
        {k: v.to("cpu", torch.bfloat16) for k, v in weights.items()},
        parts,
        tokenizer.json,
        Autoencoder(VAE, {k: v.to("cpu", torch.float16) for k, v in vae.state_dict().items()}),
    )


# --- all stages -------------------------------------------------------------------------------------------------


def train(
    out: Path,
    minutes: float,
    start: str | Path | None = None,
    processes: int | None = None,
    eyes: bool = True,
    rate: float | None = None,
) -> Path:
    """Run all stages, each unless its result is there; returns the checkpoint.

    On a CPU every core gets a process of one thread, which is faster than threads. `start` is a checkpoint to go on
    from, whose VAE is kept, without `eyes` its understanding encoder too. The last stage begins at the part `rate` of
    the full learning rate, by default what suits the machine. Raises ValueError if the start has another shape.
    """
    result = out / "janusflow-tiny.safetensors"
    if result.exists():
        return result
    if start is not None:
        check_start(start)
    out.mkdir(parents=True, exist_ok=True)
    processes = processes or (1 if best_device().type != "cpu" else min(os.cpu_count() or 1, 8))
    if processes == 1:
        _stages(result, minutes, start, eyes, rate)
    else:
        _together(processes, result, minutes, start, eyes, rate)
    return result


def check_start(start: str | Path) -> None:
    """Raise ValueError unless a checkpoint has the embedded model's shapes and words, and a VAE."""
    checkpoint = open_checkpoint(start)
    same = checkpoint.config.language, checkpoint.config.vision, checkpoint.config.flow
    if same != (config().language, config().vision, config().flow) or checkpoint.vae_weights is None:
        raise ValueError(f"{checkpoint.name} lacks the embedded model's shapes or its VAE: start from janusflow-tiny")
    if checkpoint.tokenizer is None or checkpoint.tokenizer.json != build_tokenizer().json:
        raise ValueError(f"{checkpoint.name} has another tokenizer than the embedded model: start from another one")


def _together(processes: int, *settings: Any) -> None:
    """Run the stages in several processes, none of which outlives this call, however it ends."""
    with tempfile.TemporaryDirectory() as meeting:
        running = spawn(_process, (processes, meeting, *settings), nprocs=processes, join=False)
        assert running is not None
        try:
            while not running.join():
                pass
        finally:
            for process in filter(None, running.processes):
                process.kill()
                process.join()


def _process(number: int, processes: int, meeting: str, *settings: Any) -> None:
    level = logging.INFO if number == 0 else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    meeting_point = (Path(meeting) / "store").as_uri()
    dist.init_process_group("gloo", meeting_point, timedelta(hours=2), world_size=processes, rank=number)
    try:
        _stages(*settings)
        wait_for_all()
    finally:
        dist.destroy_process_group()
    logging.shutdown()
    os._exit(0)  # the interpreter's own way out sometimes aborts over threads that are still there, with all work done


def _stages(result: Path, minutes: float, start: str | Path | None, trains_eyes: bool, rate: float | None) -> None:
    quiet_norms()
    device, folder = best_device(), result.parent
    means = CPU if device.type == "cpu" else GPU
    machine = Machine.measured(device, minutes >= means.compiling_pays)
    before = machine if means.all_compiled else replace(machine, compiles=False)
    eyes, joint = folder / "eyes.safetensors", folder / "joint.safetensors"
    missing = {file for file in (eyes, joint) if not file.exists()}
    wait_for_all()  # before any process makes one of them, all have seen the same
    model, vae = _from_nothing(folder, minutes) if start is None else _from(open_checkpoint(start))
    model, vae = model.to(machine.device).requires_grad_(True), vae.to(machine.device).requires_grad_(False)
    encoder = model.vision_und_enc_model
    if trains_eyes and eyes in missing:
        train_eyes(eyes, model, before, Budget(minutes * SHARES["eyes"]))
    wait_for_all()
    if trains_eyes:
        encoder.load_state_dict(load_file(eyes))
    least = max(DRAWN, CHUNK * world()) * machine.times  # enough for a step, and something for each process
    count = min(means.library, max(int(means.library_a_minute * minutes), least))
    seed = seed_of("library", model)
    library = Library.build(folder / "library", vae, encoder, seed, count, before).to(machine.device)
    if joint in missing:
        others = SHARES["word"] + (SHARES["eyes"] if trains_eyes else 0.0) + (SHARES["vae"] if start is None else 0.0)
        peak = rate or (1.0 if start is None else means.again)
        train_joint(joint, model, vae, library, machine, Budget(minutes * (1.0 - others)), means.asked, peak)
    wait_for_all()
    finish(result, open_checkpoint(joint), library, machine, Budget(minutes * SHARES["word"]))


def _from_nothing(folder: Path, minutes: float) -> tuple[JanusFlow, Any]:
    """A new model, and the VAE of the first stage, made or read."""
    torch.manual_seed(1)
    model = JanusFlow(config())
    model.init_weights()
    if not (folder / "vae").exists():
        train_vae(folder / "vae", Budget(minutes * SHARES["vae"]))
    wait_for_all()
    return model, autoencoder(folder / "vae")


def _from(checkpoint: Checkpoint) -> tuple[JanusFlow, Any]:
    """The model of a checkpoint, and its VAE."""
    stored, vae = checkpoint.read_vae(), autoencoder()
    assert stored is not None  # check_start has seen it
    vae.load_state_dict(stored.weights)  # float16 into float32
    return load_model(checkpoint, torch.float32), vae
