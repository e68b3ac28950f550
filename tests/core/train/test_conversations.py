"""Conversations in rows: labels where the answer is, positions that count on from the picture, segments apart."""

import gc
import weakref

from golden import micro, micro_tokenizer

from janusflow_core.tokenizer import Message
from janusflow_core.train.conversations import conversation, pack
from janusflow_core.train.losses import IGNORE

ASKED = [("What color is the circle?", "red"), ("How many objects are there?", "two of them")]


def test_labels_are_the_answer_and_its_end_shifted_by_one():
    tokenizer = micro().tokenizer
    found = conversation(tokenizer, ASKED)
    assert found.start[-1] == tokenizer.image_end_id
    for (question, answer), ids, labels in zip(ASKED, found.segments, found.labels, strict=True):
        whole = tokenizer.understanding_ids(tokenizer.question_messages(question, 1), 1)
        assert found.start + ids[: len(whole) - len(found.start)] == whole  # exactly what inference asks
        kept = [(at, label) for at, label in enumerate(labels) if label != IGNORE]
        assert [ids[at + 1] for at, _ in kept] == [label for _, label in kept]
        assert tokenizer.decode([label for _, label in kept]).strip() == answer
        assert kept[-1][1] == tokenizer.eos_id


def test_later_turns_of_a_chat_stand_as_inference_asks_them():
    tokenizer = micro().tokenizer
    asked = [*ASKED, ("What shape is it?", "a square")]
    found = conversation(tokenizer, asked, turns=[2, 1])
    (one, first), (two, second), (three, third) = asked
    said = [Message("User", f"{tokenizer.processor.image_tag}\n{one}"), Message("Assistant", first)]
    said += [Message("User", two), Message("Assistant", second)]
    assert found.start + found.segments[0] == [*tokenizer.understanding_ids(said, 1)]
    assert [*found.segments[1]] == conversation(tokenizer, [(three, third)]).segments[0]
    told = [label for label in found.labels[0] if label != IGNORE]
    assert tokenizer.decode(told, skip_special_tokens=False).split(tokenizer.special["eos_token"]) == [
        f" {first}", f" {second}", ""
    ]  # fmt: skip
    at = [place for place, label in enumerate(found.labels[0]) if label != IGNORE]
    assert [found.segments[0][place + 1] for place in at] == told


def test_segments_count_on_from_the_common_beginning():
    tokenizer = micro().tokenizer
    rows = [conversation(tokenizer, ASKED), conversation(tokenizer, ASKED[:1])]
    packed = pack(rows, tokenizer)
    start, first, second = len(rows[0].start), len(rows[0].segments[0]), len(rows[0].segments[1])
    assert packed.ids.shape == (2, start + first + second)
    positions, segments = packed.positions[0].tolist(), packed.segments[0].tolist()
    assert positions == [*range(start + first), *range(start, start + second)]
    assert segments == [0] * start + [1] * first + [2] * second
    assert packed.ids[0].tolist() == rows[0].start + rows[0].segments[0] + rows[0].segments[1]
    padding = slice(start + first, None)
    assert (packed.ids[1, padding] == tokenizer.pad_id).all() and (packed.labels[1, padding] == IGNORE).all()
    assert int(packed.image_mask.sum()) == 2 * (1 + tokenizer.processor.num_image_tokens)
    assert packed.start == start and (packed.labels[:, :start] == IGNORE).all()


def test_what_was_asked_is_forgotten_with_its_tokenizer():
    tokenizer = micro_tokenizer()
    once, again = (conversation(tokenizer, [("What is it?", "a cat")]) for _ in range(2))
    assert once == again and once.segments[0] is not again.segments[0]
    gone = weakref.ref(tokenizer)
    del tokenizer
    gc.collect()
    assert gone() is None
