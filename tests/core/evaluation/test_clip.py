"""CLIP score against the same sum written out by hand, with a tiny CLIP that is built here."""

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from janusflow_core.cli import main
from janusflow_core.evaluation.clip import clip_score, similarity

transformers = pytest.importorskip("transformers")
CPU = torch.device("cpu")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SIDE, LENGTH = 32, 12  # pixels; tokens, of which the first and the last are marks
PROMPTS = ["a cat", "red", "two dogs in it", "x", "a cat"]


def new_processor(folder: Path) -> Any:
    """One token for each letter, and one more where it ends a word; pictures of SIDE pixels stay as they are."""
    words = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    (folder / "vocab.json").write_text(json.dumps({word: place for place, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    sizes = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    return transformers.CLIPProcessor(transformers.CLIPImageProcessor(**sizes), tokenizer)


def new_model() -> Any:
    layers = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {**layers, "vocab_size": 2 + 2 * len(LETTERS), "max_position_embeddings": LENGTH}
    text |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    vision = {**layers, "image_size": SIDE, "patch_size": 8}
    torch.manual_seed(0)
    return transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    ).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip")
    new_model().save_pretrained(path)
    new_processor(tmp_path_factory.mktemp("words")).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, Path]]:
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("pictures")
    for place in range(len(PROMPTS)):
        pixels = rng.integers(0, 100, (SIDE, SIDE, 3)) + rng.integers(0, 156, 3)
        Image.fromarray(pixels.astype(np.uint8)).save(path / f"{place}.png")
    return [(prompt, path / f"{place}.png") for place, prompt in enumerate(PROMPTS)]


def ids(prompt: str) -> list[int]:
    """The tokens of a prompt of small letters and spaces, by hand."""
    letters = [
        2 + LETTERS.index(letter) + (len(LETTERS) if last else 0)
        for word in prompt.split()
        for letter, last in zip(word, [False] * (len(word) - 1) + [True], strict=True)
    ]
    return [0, *letters[: LENGTH - 2], 1]


@torch.no_grad()
def cosine(model: Any, prompt: str, picture: Path) -> float:
    """Read the two alone, project, normalise, multiply."""
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    pixels = (np.asarray(Image.open(picture)) / 255 - mean) / std
    image = torch.from_numpy(pixels.transpose(2, 0, 1)).float()[None]
    seen = model.vision_model(pixel_values=image).pooler_output[0] @ model.visual_projection.weight.T
    read = model.text_model(input_ids=torch.tensor([ids(prompt)])).last_hidden_state[0, -1]
    read = read @ model.text_projection.weight.T
    return float((seen / seen.norm()) @ (read / read.norm()))


@pytest.mark.parametrize("batch", [1, 2, 32])
def test_the_score_is_the_mean_of_cosines_and_its_error(folder: Path, pairs: list[tuple[str, Path]], batch: int):
    model, told = new_model(), []
    expected = [100 * cosine(model, prompt, picture) for prompt, picture in pairs]
    found = clip_score(pairs, folder, device=CPU, batch=batch, on_progress=lambda *now: told.append(now))
    assert found.mean == pytest.approx(np.mean(expected), abs=1e-3) and found.count == len(pairs)
    assert found.error == pytest.approx(np.std(expected, ddof=1) / len(pairs) ** 0.5, abs=1e-3) and found.error > 0.1
    assert told == [(done, 5) for done in (*range(batch, 5, batch), 5)]


def test_each_prompt_is_held_against_its_own_picture(folder: Path, pairs: list[tuple[str, Path]]):
    pictures = [Image.open(picture) for _, picture in pairs]
    found = similarity(folder, CPU)(PROMPTS, pictures)
    expected = [cosine(new_model(), prompt, picture) for prompt, picture in pairs]
    assert found.tolist() == pytest.approx(expected, abs=1e-5)
    assert len({round(value, 4) for value in expected}) == len(pairs)  # or an exchange would not be seen


def test_a_long_prompt_is_cut_at_the_models_length(folder: Path, pairs: list[tuple[str, Path]]):
    picture = pairs[0][1]
    long, cut, short = "horse " * 9, "horse horse", "horse"
    assert ids(long) == ids(cut) and len(ids(cut)) == LENGTH
    scores = [clip_score([(text, picture)], folder, device=CPU) for text in (long, cut, short)]
    assert scores[0].mean == pytest.approx(100 * cosine(new_model(), long, picture), abs=1e-3)
    assert scores[0].mean == pytest.approx(scores[1].mean, abs=1e-3) != pytest.approx(scores[2].mean, abs=1e-3)
    assert math.isnan(scores[0].error)


def test_progress_cancels(folder: Path, pairs: list[tuple[str, Path]]):
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        clip_score(pairs, folder, device=CPU, batch=1, on_progress=stop)


def spoil(path: Path, kind: str) -> None:
    if kind == "no folder":
        shutil.rmtree(path)
    elif kind.startswith("no "):
        (path / kind[3:]).unlink()
    elif kind == "cut short":
        file = path / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
    elif kind == "pickled":
        torch.save(new_model().state_dict(), path / "pytorch_model.bin")
        (path / "model.safetensors").unlink()
    elif kind == "other shapes":
        values = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps({**values, "projection_dim": 8}))
    else:  # another model, of which transformers says no more than a warning
        shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        transformers.BertModel(transformers.BertConfig(vocab_size=9, **shape)).save_pretrained(path)


@pytest.mark.parametrize(
    ("kind", "error", "sentence"),
    [
        ("no folder", FileNotFoundError, "no folder with a CLIP model at .*model: check the path"),
        *((kind, ValueError, "model is no whole CLIP with its processor .*: copy it again")
          for kind in ("no config.json", "no model.safetensors", "no processor_config.json", "cut short", "pickled",
                       "other shapes")),
        ("no tokenizer.json", FileNotFoundError, "model lacks tokenizer.json, or vocab.json and merges.txt: copy"),
        ("another model", ValueError, "model lacks .*, a weight of a CLIP: give the folder of a CLIP model"),
    ],
)  # fmt: skip
def test_what_is_no_clip_is_refused(kind: str, error: type[Exception], sentence: str, folder, pairs, tmp_path):
    spoil(Path(shutil.copytree(folder, tmp_path / "model")), kind)
    with pytest.raises(error, match=sentence):
        clip_score(pairs, tmp_path / "model", device=CPU)


def test_pictures_that_are_not_there_are_told(folder: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="got no prompts with pictures, a CLIP score needs one or more"):
        clip_score([], folder)
    with pytest.raises(FileNotFoundError, match="no picture at .*none.png: check the path"):
        clip_score([("a cat", tmp_path / "none.png")], folder, device=CPU)


def test_a_missing_library_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match='a CLIP score needs transformers: pip install "transformers'):
        similarity(folder)


def test_the_command_reads_the_table_of_a_run(folder: Path, pairs, tmp_path: Path, capsys):
    """As `janusflow bulk draw` writes it beside its folder."""
    (tmp_path / "drawn").mkdir()
    rows: list[dict[str, Any]] = [{"id": "x", "prompt": "lost", "failed": "too long"}]
    for place, (prompt, path) in enumerate(pairs):
        shutil.copyfile(path, tmp_path / f"drawn/{place}.png")
        rows.append({"id": str(place), "prompt": prompt, "seed": 0, "files": [f"{place}.png"]})
    table, out = tmp_path / "drawn.jsonl", tmp_path / "clip.json"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["evaluate", "clip", str(table), str(folder), "--device", "cpu", "--out", str(out)]) == 0
    found = clip_score(pairs, folder, device=CPU)
    assert capsys.readouterr().out == f"{found.mean:.4f} ± {found.error:.4f}  of {len(pairs)} pictures\n"
    assert json.loads(out.read_text())["value"] == pytest.approx(found.mean)
