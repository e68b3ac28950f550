"""What a model dreams: its own flow without a prompt, and its own words for it."""

import pytest
import torch
from golden import assert_close, micro_pipeline, new_codec, new_subject

from janusflow_core.drawing import DrawingConfig
from janusflow_core.image import from_tensor, preprocess
from janusflow_core.model import Prefix
from janusflow_core.sampling import draw_noise, integrate, time_grid


@torch.no_grad()
def test_dreams_are_the_flow_behind_bos_alone_and_captions_what_describe_says():
    pipe = micro_pipeline(new_codec())
    starts = [3, 9, 4, 4, 4, 4, 4, 4, 7]  # more than one batch
    dreams = new_subject(pipe).dream(starts, seed=5, steps=3)
    assert len(dreams.texts) == len(dreams.latents) == len(dreams.whole) == len(dreams.asked) == len(starts)
    bos = pipe.model.encode_prompt(torch.tensor([pipe.tokenizer.bos_id]))
    for row in (1, 8):
        alone = Prefix.join([bos], [starts[row]])
        velocity = lambda z, t, prefix=alone: pipe.model.velocity(z, torch.full((1,), t), prefix)  # noqa: E731
        expected = integrate(velocity, draw_noise((4, 4, 4), [5 + row]), time_grid(3))
        assert_close(dreams.latents[row], expected[0], 1e-4)
        (picture,) = from_tensor(pipe.codec.decode(dreams.latents[row][None]).permute(0, 2, 3, 1))
        assert dreams.texts[row] == pipe.describe(picture, max_new_tokens=48)
        assert_close(dreams.whole[row][0], preprocess(picture, pipe.image_config), 1e-3)
        assert dreams.asked[row][0] == ("Describe the image.", dreams.texts[row])
        for question, answer in dreams.asked[row]:
            assert answer == pipe.describe(picture, question, max_new_tokens=48)
    questions = [question for question, _ in dreams.asked[1]]
    assert {f"Is there {dreams.texts[1]}?", f"Is there {dreams.texts[2]}?"} < set(questions) and len(questions) == 6


def test_what_is_drawn_in_between_is_what_generate_draws():
    pipe = micro_pipeline(new_codec())
    drawing = DrawingConfig(steps=3, guidance=2.5)
    prompts = [pipe.tokenizer.generation_ids(text) for text in ("a red circle", "two")]
    drawn = new_subject(pipe).draw(prompts, drawing, seed=4)
    expected = pipe.generate(["a red circle", "two"], steps=3, guidance=2.5, seed=4)
    assert [picture.tobytes() for picture in drawn] == [picture.tobytes() for picture in expected]


def test_a_dream_can_be_cancelled():
    def stop(done):
        raise KeyboardInterrupt(done)

    with pytest.raises(KeyboardInterrupt, match="2"):
        new_subject(micro_pipeline(new_codec())).dream([3, 3], seed=0, steps=1, on_picture=stop)


def test_dreams_are_kept_as_pictures_only_to_ask_about():
    dreams = new_subject(micro_pipeline(new_codec())).dream([3, 3], seed=0, asks=False, steps=1)
    assert len(dreams.latents) == len(dreams.texts) == 2 and dreams.whole == dreams.asked == []
