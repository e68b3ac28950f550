"""The joined model against the recordings: hidden states, velocities, logits, at tiny and at official widths."""

from functools import cache

import pytest
import torch
from golden import (
    CONVERSATIONS,
    MANIFEST,
    MODULE,
    PICTURES,
    SEEDS,
    TRAJECTORY,
    VELOCITY,
    assert_close,
    config,
    conversation_inputs,
    micro,
    micro_pipeline,
    new_model,
    pipeline,
    pixels,
    read_json,
    recipe,
    stored_steps,
    tensors,
    trajectory,
)
from hypothesis import given
from hypothesis import strategies as st

from janusflow_core.attention import left_padded_mask, prefix_mask
from janusflow_core.guidance import Guidance
from janusflow_core.image import ImageConfig
from janusflow_core.model import JanusFlow, Prefix
from janusflow_core.pipeline import JanusFlowPipeline
from janusflow_core.tokenizer import Message

# Which rows of a golden velocity guidance gives alone.
CONDITIONAL, UNCONDITIONAL = 1.0, 0.0


def golden_pipeline(name: str) -> JanusFlowPipeline:
    return pipeline(PICTURES[name].get("processor", "tiny"))


# --- one velocity -----------------------------------------------------------------------------------------------


def test_hidden_states_of_every_layer_equal_golden():
    golden, pipe = tensors("components"), pipeline()
    ids, backbone = pipe.tokenizer.generation_ids("a red cat"), pipe.model.language_model.model
    prompt = pipe.model.encode_prompt(torch.tensor(ids))
    assert golden["vel.input_ids"].tolist()[:-1] == pipe.tokenizer.generation_ids("a red cat")
    seen, length = [], len(prompt)
    hooks = [layer.register_forward_pre_hook(lambda module, args: seen.append(args[0])) for layer in backbone.layers]
    hooks += [
        backbone.register_forward_hook(lambda module, args, out: seen.append(out)),
        pipe.model.vision_gen_dec_aligner.register_forward_hook(lambda module, args, out: seen.append(out)),
    ]
    prefix = Prefix.join([prompt, prompt[:1]], [length, length])
    v = pipe.model.velocity(golden["vel.z"].repeat(2, 1, 1, 1), torch.full((2,), 0.5), prefix)
    for hook in hooks:
        hook.remove()
    *hidden, decoder_input = seen
    positions = golden["vel.positions"]
    dropped = (positions > 0) & (positions < length)  # what the unconditional row never sees
    for index, found in enumerate(hidden):
        expected = golden[f"vel.hidden{index}_at"]
        assert_close(found[0, positions], expected[0], MODULE)
        assert_close(found[1, positions[~dropped]], expected[1, ~dropped], MODULE)
    assert len(hidden) == 5
    assert_close(hidden[0][0, positions], golden["vel.llm_emb_at"][0], MODULE)
    assert_close(hidden[-1][:, -576::8], golden["vel.last_hidden_image"], MODULE)
    assert_close(decoder_input[:, ::8], golden["vel.dec_in_tokens"], MODULE)
    assert_close(v[:1], golden["vel.v_cond"], VELOCITY)
    assert_close(v[1:], golden["vel.v_uncond"], VELOCITY)


@pytest.mark.parametrize("name", [name for name in PICTURES if "v_cond_first" in tensors(f"t2i_{name}")])
@pytest.mark.parametrize("branch", ["cond", "uncond"])
def test_velocities_of_first_and_last_step_equal_golden(name: str, branch: str):
    golden, case = tensors(f"t2i_{name}"), PICTURES[name]
    weight = {"cond": CONDITIONAL, "uncond": UNCONDITIONAL}[branch]
    noise, steps, w = golden["z0"], case["steps"], case["cfg"]
    velocity = golden_pipeline(name).guided_velocity(
        [case["prompt"]] * case["batch"], None, Guidance(weight), noise.shape
    )
    assert_close(velocity(noise, 0.0), golden[f"v_{branch}_first"], VELOCITY)
    step = w * golden["v_cond_last"] - (w - 1) * golden["v_uncond_last"]
    before = golden["z"][-1] - step / steps
    assert_close(velocity(before, (steps - 1) / steps), golden[f"v_{branch}_last"], VELOCITY)


@pytest.mark.parametrize("name", PICTURES)
def test_trajectory_equals_golden(name: str):
    golden, found = tensors(f"t2i_{name}"), trajectory(golden_pipeline(name), name)
    assert len(found) == PICTURES[name]["steps"]
    for index, step in enumerate(stored_steps(golden)):
        assert_close(found[step], golden["z"][index], TRAJECTORY)


# --- conversations ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_embeddings_and_prefill_logits_equal_golden(name: str):
    golden, model = tensors(f"und_{name}"), pipeline().model
    ids, real, embeddings = conversation_inputs(pipeline(), [name])
    positions = golden["positions"]
    assert torch.equal(ids, golden["input_ids"]) and torch.equal(real, golden["attention_mask"].bool())
    assert_close(embeddings[0, positions], golden["inputs_embeds_at"], MODULE)
    arange = torch.arange(ids.shape[1])[None]
    hidden = model.language_model.model(embeddings, arange, left_padded_mask(real, 0))
    assert_close(model.logits(hidden)[0, positions], golden["prefill_logits_at"], MODULE)


@pytest.mark.parametrize("name", ["batch_lengths", "batch_two_vs_one_vs_none"])
def test_last_logits_of_left_padded_batches_equal_golden(name: str):
    golden, model = tensors(f"und_{name}"), pipeline().model
    ids, real, embeddings = conversation_inputs(pipeline(), MANIFEST["und"]["cases"][name]["members"])
    assert torch.equal(ids, golden["input_ids"]) and torch.equal(real, golden["attention_mask"].bool())
    positions = (real.long().cumsum(1) - 1).clamp(min=0)
    hidden = model.language_model.model(embeddings, positions, left_padded_mask(real, 0))
    assert_close(model.logits(hidden[:, -1]), golden["last_logits"], MODULE)


def test_pictures_fill_rows_in_reading_order():
    pipe = micro()
    one, two = recipe("one", (1, 3, 32, 32), 0), recipe("two", (1, 3, 32, 32), 0)
    tag = pipe.tokenizer.processor.image_tag
    texts = [f"{tag} and {tag}", "?"]
    rows = [pipe.tokenizer.understanding_ids([Message("User", text)], text.count(tag)) for text in texts]
    ids, real = pipe.tokenizer.pad_left(rows)
    mask = pipe.tokenizer.image_mask(ids) & real

    def embedded(picture):
        return pipe.model.embed_features(pipe.model.image_features(picture))[0]

    found = pipe.model.embed_conversation(ids, mask, pipe.model.image_features(torch.cat((one, two))))
    block = 1 + pipe.tokenizer.processor.num_image_tokens
    filled = found[0][mask[0]]
    torch.testing.assert_close(filled[:block], embedded(one))
    torch.testing.assert_close(filled[block:], embedded(two))
    torch.testing.assert_close(found[~mask], pipe.model.encode_prompt(ids)[~mask])


# --- official widths --------------------------------------------------------------------------------------------


@cache
def wide() -> JanusFlowPipeline:
    """A model of the official widths, two layers deep; shared, not to be changed."""
    tokenizer, image = pipeline().tokenizer, ImageConfig.from_json_dict(read_json("tiny/preprocessor_config.json"))
    return JanusFlowPipeline(new_model(config("wide"), SEEDS["wide"]), tokenizer, image, None, torch.device("cpu"))


def test_wide_weights_are_the_recorded_ones():
    weights = wide().model.state_dict()
    for key, (total, magnitude) in MANIFEST["wide"]["weight_checksums"].items():
        assert weights[key].double().sum().item() == pytest.approx(total, abs=1e-6)
        assert weights[key].double().abs().sum().item() == pytest.approx(magnitude, abs=1e-6)


def test_wide_encoder_equals_golden():
    golden, encoder = tensors("wide"), wide().model.vision_gen_enc_model
    features, t_emb = encoder(golden["t2i.z0"], torch.tensor([500.0]))
    assert_close(t_emb, golden["enc.t_emb_500"], MODULE)
    assert_close(features[:, :, ::6, ::6], golden["enc.x_emb_500_at"], MODULE)


def test_wide_velocities_and_trajectory_equal_golden():
    golden, case = tensors("wide"), MANIFEST["wide"]["t2i"]
    noise = golden["t2i.z0"]
    for branch, weight in (("cond", CONDITIONAL), ("uncond", UNCONDITIONAL)):
        velocity = wide().guided_velocity([case["prompt"]], None, Guidance(weight), noise.shape)
        assert_close(velocity(noise, 0.0), golden[f"t2i.v_{branch}_first"], VELOCITY)
    found = wide().generate(case["prompt"], noise=noise, steps=case["steps"], guidance=case["cfg"], output="latent")
    assert_close(found, golden["t2i.z"][-1], TRAJECTORY)


def test_wide_understanding_equals_golden():
    golden, model, case = tensors("wide"), wide().model, MANIFEST["wide"]["und"]
    features = model.vision_und_enc_model(pixels(case["image"]))
    assert_close(features[0, ::16], golden["und.vision_features_at"], MODULE)
    assert_close(model.vision_und_enc_aligner(features)[0, ::16], golden["und.aligned_at"], MODULE)
    tokenizer = wide().tokenizer
    turns = tokenizer.question_messages("What is in this image?")
    ids = torch.tensor([tokenizer.understanding_ids(turns, 1)])
    assert torch.equal(ids, golden["und.input_ids"])
    continued = torch.cat((ids, golden["und.greedy_ids"][:, :-1]), dim=1)
    embeddings = model.embed_conversation(continued, tokenizer.image_mask(continued), features)
    length = continued.shape[1]
    mask = prefix_mask([length], length, length, 0, continued.device)
    hidden = model.language_model.model(embeddings, torch.arange(length)[None], mask)
    logits = model.logits(hidden[:, ids.shape[1] - 1 :])
    assert_close(logits[:, 0], golden["und.last_prefill_logits"], MODULE)
    assert_close(logits, golden["und.greedy_logits"], MODULE)
    assert logits.argmax(-1).tolist() == [case["greedy_ids"]]


# --- what no recording covers -----------------------------------------------------------------------------------


def micro_velocity(prefix: Prefix, model: JanusFlow, rows: int) -> torch.Tensor:
    return model.velocity(recipe("z", (1, 4, 4, 6), 0).repeat(rows, 1, 1, 1), torch.full((rows,), 0.3), prefix)


@given(st.lists(st.integers(1, 7), min_size=1, max_size=3), st.integers(0, 5))
def test_prefix_cache_and_padding_change_nothing(lengths: list[int], gap: int):
    model = micro().model
    rows = [recipe(f"row {k}", (length, 32), 0) for k, length in enumerate(lengths)]
    starts = [length + gap for length in lengths]
    prefix = Prefix.join(rows, starts)
    found = micro_velocity(prefix, model, len(rows))
    assert_close(micro_velocity(model.prefill(prefix, 7), model, len(rows)), found, MODULE)
    for row, start, v in zip(rows, starts, found, strict=True):
        assert_close(micro_velocity(Prefix.join([row], [start]), model, 1)[0], v, MODULE)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(1, 5)), min_size=1, max_size=5))
def test_prompts_that_begin_another_are_not_computed_again(parts: list[tuple[int, int]]):
    model = micro().model
    rows = [recipe(f"text {text}", (5, 32), 0)[:length] for text, length in parts]
    prefix = Prefix.join(rows, [6] * len(rows))
    for (text, length), source in zip(parts, prefix.sources(), strict=True):
        assert parts[source][0] == text and parts[source][1] >= length
    assert len(set(prefix.sources())) == len({text for text, _ in parts})
    alone = micro_velocity(model.prefill(prefix, 7, share=False), model, len(rows))
    assert_close(micro_velocity(model.prefill(prefix, 7), model, len(rows)), alone, MODULE)


@pytest.mark.parametrize("times", [[0.3], [0.3, 0.8]])
def test_two_branches_of_one_latent_equal_the_latent_twice(times: list[float]):
    model, z = micro().model, recipe("z", (2, 4, 4, 6), 0)
    rows = [recipe(f"row {k}", (length, 32), 0) for k, length in enumerate((3, 5, 1, 2))]
    prefix = model.prefill(Prefix.join(rows, [3, 5, 3, 5]), 7)
    twice = model.velocity(z.repeat(2, 1, 1, 1), torch.tensor((times * 2)[:2] * 2), prefix)
    assert_close(model.velocity(z, torch.tensor(times), prefix), twice, MODULE)


def test_what_stands_in_the_padding_does_not_matter():
    model = micro().model
    prefix = Prefix.join([recipe("long", (6, 32), 0), recipe("short", (2, 32), 0)], [6, 6])
    found = micro_velocity(prefix, model, 2)
    prefix.embeddings[1, 2:] = 1e3
    assert_close(micro_velocity(prefix, model, 2), found, MODULE)


def test_one_cache_serves_every_step():
    model = micro().model
    prefix = Prefix.join([recipe("prompt", (5, 32), 0)], [5])
    cached = model.prefill(prefix, 7)
    first = micro_velocity(cached, model, 1)
    model.velocity(recipe("other", (1, 4, 4, 6), 0), torch.tensor([0.9]), cached)
    torch.testing.assert_close(micro_velocity(cached, model, 1), first, rtol=0, atol=0)


def test_time_and_state_reach_bfloat16_weights_unrounded():
    model, seen = micro_pipeline().model.bfloat16(), []
    hook = model.vision_gen_enc_model.register_forward_pre_hook(lambda module, args: seen.append(args[1]))
    prefix = Prefix.join([recipe("prompt", (3, 32), 0).bfloat16()], [3])
    v = model.velocity(recipe("z", (1, 4, 4, 6), 0), torch.tensor([29 / 30]), prefix)
    hook.remove()
    assert v.dtype == torch.float32
    torch.testing.assert_close(seen[0], torch.tensor([1000 * 29 / 30]))  # bfloat16 would give 968


def test_the_two_halves_make_the_whole():
    shapes = config("tiny")
    halves = [JanusFlow(shapes, device="meta", text=text, flow=not text).state_dict() for text in (True, False)]
    whole = JanusFlow(shapes, device="meta").state_dict()
    assert not halves[0].keys() & halves[1].keys()
    assert halves[0].keys() | halves[1].keys() == whole.keys()


def test_initial_weights_are_finite_and_repeatable():
    def start() -> JanusFlow:
        model = JanusFlow(micro().model.config)
        model.init_weights(torch.Generator().manual_seed(4))
        return model

    first, second = start(), start()
    for name, weight in first.state_dict().items():
        assert weight.isfinite().all() and torch.equal(weight, second.state_dict()[name]), name
    v = micro_velocity(Prefix.join([first.encode_prompt(torch.arange(5)).detach()], [5]), first, 1)
    assert 0.05 < v.std().item() < 20
