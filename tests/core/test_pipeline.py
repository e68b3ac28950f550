"""Pictures from words and words from pictures, through the public calls."""

import math
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden import (
    CONVERSATIONS,
    GOLDEN,
    MANIFEST,
    MODULE,
    TRAJECTORY,
    VELOCITY,
    assert_close,
    messages,
    micro,
    micro_pipeline,
    new_codec,
    new_pipeline,
    picture,
    pipeline,
    recipe,
    relative,
    tensors,
    write_folder,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from janusflow_core import decoding, sampling
from janusflow_core.decoding import SamplingOptions
from janusflow_core.device import has_compiler
from janusflow_core.guidance import Guidance, guide
from janusflow_core.pipeline import JanusFlowPipeline

PROMPTS = ["a red cat", "", "一只可爱的小猫🐱 and a very long tail of words, more words and even more words"]
SMALL: dict[str, Any] = {"width": 32, "height": 48, "steps": 3, "output": "latent"}


@cache
def micro_with_codec() -> JanusFlowPipeline:
    """The micro model with the recorded autoencoder; shared, not to be changed."""
    return micro_pipeline(new_codec())


# --- the authors' loop, written anew ----------------------------------------------------------------------------


def hf_llama(pipe: JanusFlowPipeline) -> LlamaForCausalLM:
    config = pipe.model.config.language
    theirs = LlamaForCausalLM(LlamaConfig(**config.model_dump())).eval().requires_grad_(False)
    prefix = "language_model."
    state = pipe.model.state_dict().items()
    theirs.load_state_dict({key.removeprefix(prefix): value for key, value in state if key.startswith(prefix)})
    return theirs


@torch.no_grad()
def reference_loop(pipe: JanusFlowPipeline, prompt: str, z: Tensor, steps: int, guidance: float) -> Tensor:
    """As the authors' demo draws: both branches in full length, padding masked, everything recomputed each step."""
    model, llama, tokenizer = pipe.model, hf_llama(pipe), pipe.tokenizer
    question = f"User: {prompt.strip()}\n\n" if prompt.strip() else "User:"
    ids = tokenizer.encode(f"{question}Assistant:{tokenizer.processor.image_start_tag}")
    batch, length, picture_tokens = len(z), len(ids) - 1, z.shape[2] * z.shape[3] // 4
    tokens = torch.tensor([ids] * 2 * batch)
    tokens[batch:, 1:] = tokenizer.pad_id
    prompt_embeddings = llama.get_input_embeddings()(tokens)[:, :-1]
    mask = torch.ones(2 * batch, length + 1 + picture_tokens, dtype=torch.long)
    mask[batch:, 1:length] = 0
    dt = 1.0 / steps
    for step in range(steps):
        t = torch.full((2 * batch,), step / steps * 1000.0)
        features, t_emb = model.vision_gen_enc_model(torch.cat((z, z)), t)
        channels, rows, columns = features.shape[1:]
        flat = features.permute(0, 2, 3, 1).reshape(2 * batch, -1, channels)
        picture_embeddings = model.vision_gen_enc_aligner(flat)
        inputs = torch.cat((prompt_embeddings, t_emb.unsqueeze(1), picture_embeddings), dim=1)
        hidden = llama.model(inputs_embeds=inputs, attention_mask=mask, use_cache=False).last_hidden_state
        hidden = model.vision_gen_dec_aligner(model.vision_gen_dec_aligner_norm(hidden[:, -picture_tokens:]))
        grid = hidden.reshape(2 * batch, rows, columns, -1).permute(0, 3, 1, 2)
        v_cond, v_uncond = model.vision_gen_dec_model(grid, features, t_emb).chunk(2)
        z = z + dt * (guidance * v_cond - (guidance - 1) * v_uncond)
    return z


@pytest.mark.parametrize(("heads", "seed"), [(1, 11), (2, 12), (4, 13)])
@pytest.mark.parametrize(("size", "steps", "guidance"), [((4, 4), 5, 2.0), ((2, 10), 3, 7.5), ((8, 6), 8, 1.0)])
def test_generate_equals_the_authors_loop(heads: int, seed: int, size: tuple, steps: int, guidance: float):
    pipe = micro_pipeline(seed=seed, num_key_value_heads=heads)
    noise = recipe("noise", (len(PROMPTS), 4, *size), seed)
    found = pipe.generate(PROMPTS, noise=noise, steps=steps, guidance=guidance, output="latent")
    for prompt, start, latents in zip(PROMPTS, noise, found, strict=True):
        assert_close(latents[None], reference_loop(pipe, prompt, start[None], steps, guidance), TRAJECTORY)


def test_generate_equals_the_authors_loop_at_another_shape_of_the_golden_model():
    noise, prompt = recipe("noise", (2, 4, 20, 34), 5), "three foxes, a moon"
    found = pipeline().generate(prompt, num_images=2, noise=noise, steps=4, guidance=3.5, output="latent")
    assert_close(found, reference_loop(pipeline(), prompt, noise, 4, 3.5), TRAJECTORY)


# --- bfloat16 ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MANIFEST["bf16"]["cases"])
def test_bfloat16_is_closer_to_float32_than_the_demo(name: str):
    """The demo rounds time, step and state to bfloat16; ours are float32 around the same bfloat16 weights."""
    golden, case = tensors(f"t2i_{name}"), MANIFEST["bf16"]["cases"][name]
    pipe = new_pipeline()
    pipe.model.bfloat16()
    noise, truth = golden["z0"].float(), golden["z_final_fp32_model"]
    found = pipe.generate(case["prompt"], noise=noise, steps=case["steps"], guidance=case["cfg"], output="latent")
    assert found.dtype == torch.float32
    ours, demo = relative(found, truth), relative(golden["z"][-1], truth)
    assert demo == pytest.approx(case["rms_diff_to_fp32_run"] / case["rms_z"], rel=0.05)
    assert ours < demo


# --- batches, seeds, prompts ------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(
    st.lists(st.text(max_size=30), min_size=1, max_size=3),
    st.integers(1, 2),
    st.integers(0, 1000),
    st.sampled_from([1.0, 2.0, 7.5]),
)
def test_a_picture_is_the_same_alone_and_in_any_batch(prompts: list[str], copies: int, seed: int, guidance: float):
    options = {**SMALL, "steps": 2, "guidance": guidance}
    together = micro().generate(prompts, num_images=copies, seed=seed, **options)
    rows = [prompt for prompt in prompts for _ in range(copies)]
    assert len(together) == len(rows)
    for k, (row, latents) in enumerate(zip(rows, together, strict=True)):
        assert_close(latents[None], micro().generate(row, seed=seed + k, **options), VELOCITY)


def test_seeds_and_prompts_change_the_picture():
    first = micro().generate("a cat", seed=1, **SMALL)
    assert torch.equal(first, micro().generate("a cat", seed=1, **SMALL))
    assert relative(micro().generate("a cat", seed=2, **SMALL), first) > 0.1
    assert relative(micro().generate("a dog", seed=1, **SMALL), first) > 1e-3


def test_a_negative_prompt_takes_the_unconditional_branch_at_its_own_length():
    z = recipe("z", (1, 4, 4, 6), 0)
    branches = [micro().guided_velocity([text], None, Guidance(1.0), z.shape)(z, 0.4) for text in (PROMPTS[2], "blue")]
    found = micro().guided_velocity([PROMPTS[2]], "blue", Guidance(3.0), z.shape)(z, 0.4)
    assert_close(found, guide(*branches, 3.0), VELOCITY)


def test_an_empty_negative_prompt_is_none():
    plain = micro().generate("a cat", **SMALL)
    assert torch.equal(micro().generate("a cat", negative_prompt="", **SMALL), plain)
    assert not torch.equal(micro().generate("a cat", negative_prompt="blue", **SMALL), plain)


def test_heun_evaluates_the_same_guided_velocity():
    noise = recipe("noise", (1, 4, 4, 6), 0)
    velocity = micro().guided_velocity(["a cat"], None, Guidance(2.0), noise.shape)
    expected = sampling.integrate(velocity, noise, sampling.time_grid(4), "heun")
    found = micro().generate("a cat", noise=noise, steps=4, solver="heun", output="latent")
    assert torch.equal(found, expected)
    assert relative(found, micro().generate("a cat", noise=noise, steps=4, output="latent")) > 1e-3


def test_defaults_draw_at_the_trained_size():
    assert micro().generate("a cat", steps=1, output="latent").shape == (1, 4, 4, 4)


def test_steps_are_reported_and_can_cancel():
    seen = []
    micro().generate("a cat", on_step=lambda done, steps, ahead: seen.append((done, steps, ahead.shape)), **SMALL)
    assert seen == [(k, 3, (1, 4, 6, 4)) for k in (1, 2, 3)]

    def cancel(done: int, steps: int, ahead: Tensor) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        micro().generate("a cat", on_step=cancel, **SMALL)


# --- pictures in and out ----------------------------------------------------------------------------------------


def test_outputs_are_the_same_picture():
    options = {**SMALL, "num_images": 2}
    latents = micro_with_codec().generate("a cat", **options)
    pixels = micro_with_codec().generate("a cat", **{**options, "output": "pixels"})
    images = micro_with_codec().generate("a cat", **{**options, "output": "pil"})
    assert pixels.shape == (2, 3, 48, 32) and 0 <= pixels.min() and pixels.max() <= 1
    torch.testing.assert_close(micro_with_codec().codec.decode(latents), pixels)
    for image, expected in zip(images, pixels, strict=True):
        assert image.size == (32, 48)
        assert np.array_equal(np.asarray(image), (expected * 255).round().byte().permute(1, 2, 0).numpy())


def start_picture() -> Image.Image:
    return Image.open(GOLDEN / "images" / "wide.png").resize((32, 48))


def test_full_strength_starts_from_noise_alone():
    plain = micro_with_codec().generate("a cat", **SMALL)
    assert torch.equal(micro_with_codec().generate("a cat", init_image=start_picture(), **SMALL), plain)


def test_little_strength_changes_the_picture_little():
    pipe, picture = micro_with_codec(), start_picture()
    x = pipe.codec.encode(torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)[None] / 255)
    distance = [relative(pipe.generate("a cat", init_image=picture, strength=s, **SMALL), x) for s in (1e-3, 0.3, 1.0)]
    assert distance[0] < 0.05 and distance == sorted(distance)


def test_what_the_mask_leaves_out_is_kept():
    pipe, picture = micro_with_codec(), start_picture()
    pixels = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)[None] / 255
    mask = torch.zeros(1, 48, 32)
    mask[:, :24] = 1
    for given_mask in (mask, Image.fromarray((mask[0] * 255).byte().numpy())):
        found = pipe.generate("a cat", init_image=pixels, mask=given_mask, strength=0.8, num_images=2, **SMALL)
        kept = pipe.codec.encode(pixels).expand_as(found)[:, :, 3:]
        assert torch.equal(found[:, :, 3:], kept)
        assert not torch.allclose(found[:, :, :3], pipe.codec.encode(pixels).expand_as(found)[:, :, :3], atol=0.1)


def never(*_: object) -> None:
    raise AssertionError("the flow has begun")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"width": 40}, "width must be a multiple of 16 pixels, got 40"),
        ({"width": 0}, "width must be a multiple of 16 pixels, got 0"),
        ({"height": 8}, "height must be a multiple of 16 pixels, got 8"),
        ({"noise": torch.zeros(2, 4, 4, 4)}, r"noise must be \(1, 4, h, w\).*got \(2, 4, 4, 4\)"),
        ({"noise": torch.zeros(1, 3, 4, 4)}, r"noise must be.*got \(1, 3, 4, 4\)"),
        ({"noise": torch.zeros(1, 4, 4, 5)}, r"even h and w, got \(1, 4, 4, 5\)"),
        ({"noise": torch.zeros(4, 4, 4)}, r"noise must be.*got \(4, 4, 4\)"),
        ({"num_images": 0}, "nothing to draw"),
        ({"prompt": []}, "nothing to draw"),
        ({"steps": 0}, "at most 1,000,000, got 0"),
        ({"solver": "rk45"}, "'rk45' is unknown"),
        ({"mask": torch.ones(1, 32, 32)}, "mask and strength need init_image"),
        ({"strength": 0.5}, "mask and strength need init_image"),
        ({"strength": 7.0}, r"strength must lie in \(0, 1\], got 7.0"),
        ({"strength": math.nan}, r"strength must lie in \(0, 1\], got nan"),
        ({"guidance": math.nan}, "guidance must be a number, got nan"),
        ({"guidance": math.inf}, "guidance must be a number, got inf"),
        ({"init_image": torch.zeros(1, 3, 32, 32), "strength": 0.0}, r"strength must lie in \(0, 1\], got 0.0"),
        ({"init_image": torch.zeros(1, 3, 32, 32), "strength": 1.1}, "strength.*got 1.1"),
        ({"init_image": torch.zeros(1, 3, 48, 32)}, r"init_image must be \(B, 3, 32, 32\).*got \(1, 3, 48, 32\)"),
        ({"output": "jpeg"}, "output must be 'pil', 'pixels' or 'latent', got 'jpeg'"),
    ],
)
def test_bad_arguments_are_refused_in_one_sentence(arguments: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        micro_with_codec().generate(**{"prompt": "a cat", "steps": 1, "on_step": never, **arguments})


def test_without_a_vae_only_latents_can_be_had():
    with pytest.raises(ValueError, match="no VAE: pass vae=.*output='latent'"):
        micro().generate("a cat", steps=1, on_step=never)
    with pytest.raises(ValueError, match="got 'jpeg'"):
        micro_with_codec().generate("a cat", steps=1, on_step=never, output="jpeg")


def test_only_pixels_need_diffusers():
    code = """if True:
        import sys
        sys.modules["diffusers"] = None
        from PIL import Image
        from janusflow_core import JanusFlowPipeline
        pipe = JanusFlowPipeline.from_pretrained("janusflow-tiny", device="cpu")
        print(pipe.describe(Image.new("RGB", (96, 96), "white"), max_new_tokens=3))
        print(tuple(pipe("a heart", steps=1, output="latent").shape))
        def never(*_):
            raise AssertionError("the flow has begun")
        try:
            pipe("a heart", steps=1, on_step=never)
        except ImportError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    wanted = 'pictures need diffusers outside ComfyUI: pip install "diffusers>=0.35"'
    assert done.stdout.splitlines()[1:] == ["(1, 4, 12, 12)", wanted], done


def test_a_call_generates():
    assert torch.equal(micro()("a cat", **SMALL), micro().generate("a cat", **SMALL))


def test_a_pipeline_is_converted_in_place():
    pipe = micro_pipeline()
    assert pipe.to(dtype=torch.bfloat16) is pipe and pipe.dtype == torch.bfloat16
    rounded = pipe.generate("a cat", **SMALL)
    again = pipe.to("cpu", torch.float32).generate("a cat", **SMALL)
    assert 0 < relative(rounded, micro().generate("a cat", **SMALL)) < 0.1
    assert 0 < relative(again, micro().generate("a cat", **SMALL)) < 0.1  # what bfloat16 rounded stays so


def test_a_pipeline_with_a_vae_moves_whole(tmp_path):
    folder = write_folder(tmp_path / "micro", micro(), codec=True)
    pipe = JanusFlowPipeline.from_pretrained(folder, device="cpu", dtype=torch.float32)
    before = pipe.generate("a cat", **{**SMALL, "output": "pixels"})
    pipe.to("meta")
    assert {p.device.type for p in (*pipe.model.parameters(), *pipe.codec.vae.parameters())} == {"meta"}
    assert before.device.type == "cpu"


@pytest.mark.parametrize(
    "call",
    [
        lambda pipe: pipe.generate("word " * 60, steps=1, output="latent"),
        lambda pipe: pipe.generate("a", negative_prompt="word " * 60, steps=1, output="latent"),
        lambda pipe: pipe.describe(picture("wide"), "word " * 60, max_new_tokens=1),
        lambda pipe: pipe.describe(picture("wide"), "?", max_new_tokens=64),
    ],
    ids=["prompt", "negative prompt", "question", "answer"],
)
def test_what_exceeds_the_context_is_refused(call):
    pipe = micro_pipeline(max_position_embeddings=100)
    pipe.generate("a", steps=1, output="latent")
    pipe.describe(picture("wide"), "?", max_new_tokens=1)
    with pytest.raises(ValueError, match=r"need \d+ tokens, but the model's context holds 100: make them shorter"):
        call(pipe)


# --- pictures to words ------------------------------------------------------------------------------------------


def test_converse_gives_the_golden_answers_batched_and_alone():
    pipe = pipeline()
    turns, images = (
        [messages(name) for name in CONVERSATIONS],
        [[picture(image) for image in CONVERSATIONS[name]["images"]] for name in CONVERSATIONS],
    )
    expected = [case["answer"].strip() for case in CONVERSATIONS.values()]
    assert pipe.converse(turns, images, max_new_tokens=24) == expected
    alone = [pipe.converse([t], [i], max_new_tokens=24)[0] for t, i in zip(turns, images, strict=True)]
    assert alone == expected


def test_describe_asks_the_golden_question():
    found = pipeline().describe(picture("square384"), "What is in this image?", max_new_tokens=24)
    assert found == CONVERSATIONS["square"]["answer"].strip()


def test_describe_streams_the_answer():
    pieces: list[str] = []
    options = {"question": "Which is brighter?", "max_new_tokens": 24, "temperature": 0.9, "top_p": 0.9, "seed": 3}
    pictures = [picture("wide"), picture("gray")]
    answer = micro().describe(pictures, together=True, on_token=pieces.append, **options)
    assert "".join(pieces).strip() == answer
    assert len(pieces) > 3
    assert micro().describe(pictures, together=True, **options) == answer


def test_several_pictures_get_an_answer_each_from_memory_or_files(tmp_path):
    options = {"question": "What?", "max_new_tokens": 6, "temperature": 1.0}
    files = [GOLDEN / "images" / f"{name}.png" for name in ("wide", "gray", "rgba")] * 3
    answers = micro().describe(files, seed=4, **options)
    alone = [micro().describe(Image.open(file), seed=4 + k, **options) for k, file in enumerate(files)]
    assert answers == alone and len(set(answers)) > 3
    assert micro().describe(str(files[0]), seed=4, **options) == answers[0]
    assert micro().describe([], **options) == []
    with pytest.raises(ValueError, match="on_token follows one answer"):
        micro().describe(files, on_token=print, **options)
    with pytest.raises(FileNotFoundError, match="no picture at .*none.png"):
        micro().describe([files[0], tmp_path / "none.png"], **options)


@pytest.mark.parametrize("fitting", [1, 2, 9])
def test_questions_are_asked_each_about_its_picture_or_all_about_one(fitting: int, monkeypatch):
    """Whatever fits into the memory at once."""
    monkeypatch.setattr(decoding, "fitting", lambda free, row: fitting)
    options = {"max_new_tokens": 6, "temperature": 1.0}
    pictures, questions = [picture("wide"), picture("gray"), picture("rgba")], ["What?", "Which is brighter?", "Why?"]

    def alone(shown, question: str, seed: int) -> str:
        return micro().describe(shown, question, seed=seed, together=True, **options)

    each = [alone(*pair, 4 + k) for k, pair in enumerate(zip(pictures, questions, strict=True))]
    assert micro().describe(pictures, questions, seed=4, **options) == each and len(set(each)) == 3
    one = [alone(pictures[0], question, seed) for question, seed in zip(questions, (9, 2, 5), strict=True)]
    assert micro().describe(pictures[0], questions, seed=[9, 2, 5], **options) == one
    all_ = [alone(pictures, question, 4 + k) for k, question in enumerate(questions)]
    assert micro().describe(pictures, questions, together=True, seed=4, **options) == all_
    assert micro().describe(pictures[0], questions[:1], seed=4, **options) == each[:1]
    assert micro().describe(pictures[0], [], **options) == []


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda pipe, three: pipe.describe(three, ["What?", "Why?"]), "got 2 questions and 3 pictures, expected one"),
        (lambda pipe, three: pipe.describe(three, seed=[1, 2]), "got 2 seeds, expected one to count from, or 3, one"),
        (lambda pipe, three: pipe.describe(three[0], ["a", "b"], seed=[1]), "got 1 seeds, expected one to count from"),
        (lambda pipe, three: pipe.describe(three[0], ["a", "b"], on_token=print), "on_token follows one answer"),
        (lambda pipe, three: pipe.score(three, ["a", "b"]), "got 2 prompts and 3 pictures, expected one of them"),
    ],
)
def test_as_many_texts_as_fit_no_pictures_are_refused(call, words: str):
    with pytest.raises(ValueError, match=words):
        call(micro(), [picture("wide"), picture("gray"), picture("rgba")])


def test_sampled_answers_do_not_depend_on_the_batch():
    tokenizer, options = micro().tokenizer, SamplingOptions(temperature=1.0)
    turns = [tokenizer.question_messages("What?", 1), tokenizer.question_messages("Where is it, and why?", 2)]
    images = [[picture("wide")], [picture("gray"), picture("rgba")]]
    together = micro().converse(turns, images, max_new_tokens=9, options=options, seeds=[5, 6])
    for k in (0, 1):
        alone = micro().converse([turns[k]], [images[k]], max_new_tokens=9, options=options, seeds=[5 + k])
        assert alone == [together[k]]


def test_an_answer_can_be_cancelled():
    def cancel(piece: str) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        micro().describe(picture("wide"), on_token=cancel)


# --- loading ----------------------------------------------------------------------------------------------------


def test_from_pretrained_is_the_same_model(tmp_path):
    folder = write_folder(tmp_path / "micro", micro(), codec=True)
    pipe = JanusFlowPipeline.from_pretrained(folder, device="cpu", dtype=torch.float32)
    kept = micro().model.state_dict()
    assert all(torch.equal(weight, kept.pop(name)) for name, weight in pipe.model.state_dict().items()) and not kept
    # Not bit for bit: where weights lie in memory chooses the kernel of a product.
    assert_close(pipe.generate("a cat", **SMALL), micro().generate("a cat", **SMALL), MODULE)
    assert pipe.describe(picture("wide"), max_new_tokens=5) == micro().describe(picture("wide"), max_new_tokens=5)
    assert_close(
        pipe.generate("a cat", **{**SMALL, "output": "pixels"}),
        micro_with_codec().generate("a cat", **{**SMALL, "output": "pixels"}),
        MODULE,
    )


def test_bfloat16_weights_draw_and_describe(tmp_path):
    folder = write_folder(tmp_path / "micro", micro())
    pipe = JanusFlowPipeline.from_pretrained(folder, device="cpu", dtype=torch.bfloat16)
    assert pipe.dtype == torch.bfloat16
    found = pipe.generate("a cat", **SMALL)
    assert found.dtype == torch.float32 and relative(found, micro().generate("a cat", **SMALL)) < 0.1
    assert len(pipe.tokenizer.encode(pipe.describe(picture("wide"), max_new_tokens=5))) > 1


@pytest.mark.skipif(not has_compiler(), reason="torch.compile needs a C++ compiler")
def test_compiled_it_draws_the_same_and_compiles_once_for_prompts_of_any_length():
    pipe = micro_pipeline().compile()
    first = pipe.generate(PROMPTS[:2], **SMALL)
    assert_close(first, micro().generate(PROMPTS[:2], **SMALL), TRAJECTORY)
    with torch.compiler.set_stance("fail_on_recompile"):
        for prompts in ([PROMPTS[0]] * 2, ["", "a much longer prompt than that, " * 2]):
            assert_close(pipe.generate(prompts, **SMALL), micro().generate(prompts, **SMALL), TRAJECTORY)
        with pytest.raises(RuntimeError, match="recompile"):  # of another number
            pipe.generate(PROMPTS[0], **SMALL)


def test_without_a_compiler_compiling_says_what_is_missing(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(OSError, match=r"needs a C\+\+ compiler, and there is none: install g\+\+"):
        micro_pipeline().compile()


def test_a_pipeline_loads_and_draws_without_a_compiler_or_diffusers():
    """Both are slow to import: the first picture would come seconds later."""
    code = """
import sys
from janusflow_core.pipeline import JanusFlowPipeline
JanusFlowPipeline.from_pretrained().generate("a heart", steps=1, output="latent")
assert not {"torch._dynamo", "diffusers", "transformers"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
