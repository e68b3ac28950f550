"""The samples of a run by number: the same for any division among processes, and none lost to broken rows."""

import json
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import micro
from PIL import Image

from janusflow_core.train.ahead import ahead
from janusflow_core.train.data import open_data
from janusflow_core.train.order import Mixture, Phase
from janusflow_core.train.packing import Batch, Writer
from janusflow_core.train.stream import TRIES, Batches, Pool, Stream

SHARES = {"understanding": 1, "generation": 2, "text": 1}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six captioned pictures and five texts."""
    for number in range(6):
        values = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(values).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"picture {number}")
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"text": f"text {number}"}) for number in range(5)))
    return tmp_path


def new_stream(folder: Path, times: int = 1, seed: int = 0, shares=SHARES) -> Stream:
    pipe = micro()
    writer = Writer(pipe.tokenizer, pipe.image_config, (4, 4, 4), tokens=5, length=300, format="plain")
    sources = [open_data(folder), open_data(folder / "texts.jsonl")]
    return Stream(sources, [times, 1], Mixture([Phase(0, shares)]), writer, seed)


def said(stream: Stream, number: int) -> str:
    written, problems = stream(number)
    assert not problems
    return f"{written.task}: {micro().tokenizer.decode(written.ids)}"


def test_every_row_comes_once_an_epoch(folder: Path):
    stream = new_stream(folder, shares={"generation": 0, "understanding": 1, "text": 0})
    epochs = [[said(stream, 6 * epoch + place) for place in range(6)] for epoch in range(3)]
    assert all(len(set(epoch)) == 6 and set(epoch) == set(epochs[0]) for epoch in epochs)
    assert epochs[0] != epochs[1] or epochs[1] != epochs[2]


def test_a_data_set_comes_as_often_as_it_says(folder: Path):
    stream = new_stream(folder, times=3, shares={"generation": 0, "understanding": 1, "text": 0})
    assert set(Counter(said(stream, number) for number in range(18)).values()) == {3}


def test_rows_of_a_pool_are_counted_through(folder: Path):
    sources = [open_data(folder / "texts.jsonl"), open_data(folder), open_data(folder / "texts.jsonl")]
    pool = Pool(sources, [1, 1, 1], "text")
    assert len(pool) == 10
    assert [(sources.index(source), row) for source, row, _ in map(pool.find, range(10))] == [
        (part, row) for part in (0, 2) for row in range(5)
    ]
    assert [overall for *_, overall in map(pool.find, range(10))] == [0, 1, 2, 3, 4, 11, 12, 13, 14, 15]


def test_a_sample_is_a_function_of_seed_and_number(folder: Path):
    one, same, other = new_stream(folder), new_stream(folder), new_stream(folder, seed=1)
    for number in range(12):
        (a, _), (b, _) = one(number), same(number)
        assert (a.ids, a.t) == (b.ids, b.t)
    assert [one(number)[0].t for number in range(12)] != [other(number)[0].t for number in range(12)]


def ids(batches: list[Batch]) -> list[tuple[int, ...]]:
    """The tokens of every sample, in no order."""
    found = []
    for batch in batches:
        for number in range(len(batch.tasks)):
            found.append(tuple(batch.ids[batch.owners == number].tolist()))
    return sorted(found)


@pytest.mark.parametrize(("world", "at_once"), [(1, 8), (2, 4), (2, 1), (4, 2)])
def test_a_step_sees_the_same_however_it_is_divided(folder: Path, world: int, at_once: int):
    whole = Batches(new_stream(folder), 8, 8, 0, 1)
    parts = [Batches(new_stream(folder), 8, at_once, rank, world) for rank in range(world)]
    for step in range(3):
        numbers = [step * part.accumulate + place for part in parts[:1] for place in range(part.accumulate)]
        assert ids([whole(step)[0]]) == ids([part(number)[0] for part in parts for number in numbers])


def test_workers_make_what_one_process_makes(folder: Path):
    batches = Batches(new_stream(folder), 4, 4, 0, 1)
    for mine, (made, _) in enumerate(ahead(batches, range(3), workers=2)):
        here, _ = batches(mine)
        assert torch.equal(made.ids, here.ids) and torch.equal(made.noise, here.noise)
        assert torch.equal(made.crops, here.crops) and made.tasks == here.tasks
    assert ids([pickle.loads(pickle.dumps(batches))(5)[0]]) == ids([batches(5)[0]])


def test_a_batch_that_cannot_be_divided_is_refused(folder: Path):
    with pytest.raises(ValueError, match="a batch of 8 samples cannot be divided among 3 processes, 2 at once"):
        Batches(new_stream(folder), 8, 2, 0, 3)


def test_broken_rows_are_named_and_the_next_takes_their_place(folder: Path):
    (folder / "3.png").write_bytes(b"no picture")
    (folder / "5.txt").write_text("")
    stream = new_stream(folder, shares={"generation": 1, "understanding": 0, "text": 0})
    drawn, problems = zip(*(stream(number) for number in range(6)), strict=True)
    assert len(drawn) == 6
    told = dict(problem for some in problems for problem in some)
    assert set(told) == {"broken", "no caption"}
    assert told["broken"].startswith("3.png: ") and told["no caption"] == "5.png: it has no text"


def test_nothing_but_broken_rows_ends_the_run(folder: Path):
    for number in range(6):
        (folder / f"{number}.png").write_bytes(b"no picture")
    stream = new_stream(folder, shares={"generation": 1, "understanding": 0, "text": 0})
    with pytest.raises(ValueError, match=f"{TRIES} rows one after the other cannot be learnt from, the last: ..png"):
        stream(0)


def test_a_share_without_rows_is_refused(folder: Path):
    (folder / "texts.jsonl").write_text('{"image": "0.png", "text": "a"}')
    with pytest.raises(ValueError, match="the mixture has a share of text, but no row of the data is for it"):
        new_stream(folder)
