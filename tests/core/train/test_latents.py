"""Latents in a file: what was written is read, a torn record is none, a full disk is a sentence."""

import pickle
from pathlib import Path

import pytest
import torch
from golden import recipe

from janusflow_core.train.latents import Latents, fingerprint

SHAPE = (4, 6, 8)


def kept(tmp_path: Path) -> Latents:
    return Latents(tmp_path / "new" / "latents.bin", SHAPE, crops=3)


def test_what_was_written_is_read(tmp_path: Path):
    latents = kept(tmp_path)
    assert latents.read(0) is None and latents.read(7) is None
    made = recipe("x", (3, *SHAPE), 0)
    given = latents.write([7, 0, 2], made)
    torch.testing.assert_close(given, made, rtol=1e-3, atol=1e-3)
    for place, row in ((7, 0), (0, 1), (2, 2)):
        for reader in (latents, pickle.loads(pickle.dumps(latents))):
            assert torch.equal(reader.read(place), given[row])
    assert [latents.read(place) for place in (1, 3, 6, 8, 100)] == [None] * 5
    again = latents.write([0], made[:1])
    assert torch.equal(latents.read(0), again[0])  # type: ignore[arg-type]


@pytest.mark.parametrize("cut", [1, 2, 100])
def test_a_torn_record_is_none(tmp_path: Path, cut: int):
    latents = kept(tmp_path)
    latents.write([0, 1], recipe("x", (2, *SHAPE), 0))
    whole = latents.file.read_bytes()
    latents.file.write_bytes(whole[:-cut])
    assert latents.read(1) is None and latents.read(0) is not None
    latents.file.write_bytes(whole[:-cut] + bytes(cut))  # as a hole is read before what stands behind it
    assert latents.read(1) is None and latents.read(0) is not None


def test_a_name_tells_settings_weights_and_files(tmp_path: Path):
    file, weight = tmp_path / "a", torch.ones(3)
    file.write_text("a")
    names = {
        fingerprint("x", [weight], [file]),
        fingerprint("y", [weight], [file]),
        fingerprint("x", [2 * weight], [file]),
    }
    same = fingerprint("x", [weight.clone()], [file])
    file.write_text("ab")
    names |= {fingerprint("x", [weight], [file]), fingerprint("x", [weight], [])}
    assert len(names) == 5 and same in names


def test_a_folder_that_refuses_is_a_sentence(tmp_path: Path, monkeypatch):
    latents = kept(tmp_path)
    (tmp_path / "new").write_text("a file where the folder belongs")
    with pytest.raises(OSError):
        latents.write([0], recipe("x", (1, *SHAPE), 0))
