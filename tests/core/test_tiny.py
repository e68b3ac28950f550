"""The recipe of the embedded model: its parts one by one, then all stages for a few steps."""

import random

import pytest
import torch
from torch import nn

from janusflow_core import JanusFlowPipeline, shapes, tiny
from janusflow_core.checkpoint import open_checkpoint
from janusflow_core.losses import IGNORE
from janusflow_core.model import JanusFlow


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.build_tokenizer()


@pytest.fixture(scope="module")
def model():
    model = JanusFlow(tiny.config())
    model.init_weights(torch.Generator().manual_seed(0))
    return model


@pytest.fixture(scope="module")
def library():
    rng = random.Random(0)
    examples = [shapes.sample_training_example(rng) for _ in range(6)]
    torch.manual_seed(0)
    return tiny.Library(
        torch.randn(6, 4, 12, 12).half(),
        torch.randn(6, 36, 160).half(),
        [e[2] for e in examples],
        [e[0] for e in examples],
    )


def test_tokenizer_reads_any_text_and_fits_the_model(tokenizer):
    assert tokenizer.vocab_size <= tiny.config().language.vocab_size
    assert tokenizer.decode(tokenizer.encode("Größe 你好 \n x")) == "Größe 你好 \n x"
    assert len(tokenizer.encode("a red circle left of a blue square", bos=False)) == 8  # a word is a token


def test_both_encoders_give_the_same_grid():
    config = tiny.config()
    assert config.vision.grid == tiny.SIZE // 16 == 6


def test_the_world_is_what_training_may_see():
    scenes = tiny.draw_scenes(5, 300)
    assert not any(shapes.is_held_out(scene) for scene in scenes)
    assert scenes == tiny.draw_scenes(5, 300) != tiny.draw_scenes(6, 300)


def test_rendered_scenes_span_minus_one_to_one():
    pixels = tiny.render(tiny.draw_scenes(0, 20))
    assert pixels.shape == (20, 3, 96, 96)
    assert -1 <= pixels.min() < -0.7 and 0.7 < pixels.max() <= 1


def test_schedule_warms_up_holds_and_falls():
    factors = [tiny.schedule(step, 1000) for step in range(1000)]
    assert factors[0] < 0.05 and factors[50] == factors[499] == 1.0 and factors[-1] < 0.02
    assert all(a >= b for a, b in zip(factors[50:], factors[51:], strict=False))


def test_crops_are_cut_from_their_own_picture():
    pixels = torch.arange(2 * 3 * 9 * 9.0).view(2, 3, 9, 9)
    cut = tiny.crops(pixels, 4, torch.Generator().manual_seed(1))
    assert cut.shape == (2, 3, 4, 4)
    for picture, piece in zip(pixels, cut, strict=True):
        assert torch.isin(piece, picture).all()
        assert (piece[0, 1] - piece[0, 0] == 9).all()


def test_patch_labels_name_what_lies_there():
    scene = shapes.Scene((250, 250, 250), (shapes.Object("star", "blue", 24.0, 72.0, 14.0, (35, 70, 215)),))
    labels = tiny.patch_labels([scene]).view(6, 6)
    expected = 1 + list(shapes.COLORS).index("blue") * len(shapes.SHAPES) + shapes.SHAPES.index("star")
    assert labels[4, 1] == expected and labels[0, 5] == 0


def test_normalising_latents_keeps_pictures_and_gives_unit_scale():
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(**tiny.VAE).eval()
    x = tiny.render(tiny.draw_scenes(0, 4))
    with torch.no_grad():
        before = vae.decode(vae.encode(x).latent_dist.mean).sample
        tiny.normalise_latents(vae, x)
        latents = vae.encode(x).latent_dist.mean
        after = vae.decode(latents).sample
    scaled = latents * tiny.SCALING_FACTOR
    assert (scaled.mean(dim=(0, 2, 3)).abs() < 1e-3).all() and (scaled.std(dim=(0, 2, 3)) - 1).abs().max() < 1e-3
    assert (after - before).abs().max() < 1e-3


def test_optimizer_sends_every_weight_one_way_and_moves_it():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 4, 5))
    optimizer = tiny.Optimizer(net.named_parameters(), lambda name: name == "0.weight", steps=10)
    before = [p.detach().clone() for p in net.parameters()]
    net(torch.randn(2, 3, 4, 4)).square().sum().backward()
    optimizer.step(0)
    assert len(optimizer.hidden) == 1 and len(optimizer.adam.param_groups[0]["params"]) == 3
    assert all((a != b).any() for a, b in zip(before, net.parameters(), strict=True))
    assert all(p.grad is None for p in net.parameters())


def test_labels_are_the_answer_and_its_end_shifted_by_one(tokenizer):
    asked = [("color", "What color is the circle?", "red"), ("count", "How many objects are there?", "two")]
    start, segments, labels = tiny.conversation(tokenizer, asked)
    assert start[-1] == tokenizer.image_end_id
    for (_, question, answer), ids, marks in zip(asked, segments, labels, strict=True):
        whole = tokenizer.understanding_ids(tokenizer.question_messages(question, 1), 1)
        assert start + ids[: len(whole) - len(start)] == whole  # exactly what inference asks
        kept = [(at, label) for at, label in enumerate(marks) if label != IGNORE]
        assert [ids[at + 1] for at, _ in kept] == [label for _, label in kept]
        assert tokenizer.decode([label for _, label in kept]).strip() == answer
        assert kept[-1][1] == tokenizer.eos_id


def test_questions_of_one_picture_do_not_see_each_other(model, tokenizer, library, monkeypatch):
    """With another first question and answer, the second one's loss stays what it was."""

    def loss_of_second(first):
        asked = [first, ("color", "What color is the circle?", "red")]
        monkeypatch.setattr(tiny.shapes, "questions", lambda scene, rng: asked)
        captured = {}
        monkeypatch.setattr(
            tiny,
            "autoregressive_loss",
            lambda logits, labels: captured.update(logits=logits, labels=labels) or logits.sum((1, 2)),
        )
        monkeypatch.setattr(random.Random, "sample", lambda self, rows, count: list(rows))
        tiny.understanding_terms(model, tokenizer, library, [0], random.Random(0))
        answer = len(tokenizer.encode(" red", bos=False)) + 1
        places = (captured["labels"][0] != IGNORE).nonzero().flatten()[-answer:]
        return captured["logits"][0, places].detach()

    one = loss_of_second(("count", "How many objects are there?", "two"))
    other = loss_of_second(("exists", "Is there a red circle?", "yes"))
    assert torch.allclose(one, other, atol=1e-5)


def test_generation_terms_are_per_sample_and_train_the_flow(model, tokenizer, library):
    torch.manual_seed(0)
    projector = nn.Linear(192, 160)
    terms = tiny.generation_terms(model, projector, tokenizer, library, [0, 1, 2], random.Random(0))
    assert terms["flow"].shape == terms["repa"].shape == (3,)
    assert (terms["repa"].abs() <= 1).all() and (terms["flow"] > 0).all()
    sum(term.mean() for term in terms.values()).backward()
    assert projector.weight.grad.abs().sum() > 0
    assert model.vision_gen_dec_aligner.weight.grad.abs().sum() > 0
    assert not model.language_model.model.layers[0]._forward_hooks
    model.zero_grad()


def test_all_stages_run_and_leave_a_checkpoint_that_loads(tmp_path):
    path = tiny.train(tmp_path, scale=1e-4)
    assert open_checkpoint(path).has_flow and open_checkpoint(path).has_text
    pipe = JanusFlowPipeline.from_pretrained(path, device="cpu")
    assert pipe.generate("a heart", steps=2)[0].size == (96, 96)
    assert isinstance(pipe.describe(pipe.generate("a heart", steps=1)[0], max_new_tokens=3), str)
    changed = path.stat().st_mtime_ns
    assert tiny.train(tmp_path, scale=1e-4).stat().st_mtime_ns == changed  # a finished stage is not run again
