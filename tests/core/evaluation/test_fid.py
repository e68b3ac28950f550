"""FID against scipy, closed forms and torch-fidelity's own sum of it, and what is refused."""

import csv
import hashlib
import json
import pickle
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from janusflow_core.cli import main
from janusflow_core.evaluation.fid import (
    Statistics,
    distance,
    features_of,
    fid,
    inception,
    moments,
    pictures_of,
    read_statistics,
    write_statistics,
)

CPU = torch.device("cpu")
SIZES = [(48, 40), (64, 64), (48, 40), (20, 30), (64, 64), (48, 40)]


def colours(pictures: Tensor) -> np.ndarray:
    """A network that sees little: the mean of red, green and blue, 0 to 255."""
    return pictures.float().mean(dim=(2, 3)).numpy()


def features(seed: int, count: int, length: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(rng.normal(size=length), 1, (count, length)) @ rng.normal(size=(length, length))


def statistics(found: np.ndarray) -> Statistics:
    return Statistics(found.mean(axis=0), np.cov(found, rowvar=False).reshape(2 * found.shape[1:]), len(found))


def draw(folder: Path, seed: int, sizes: list[tuple[int, int]] = SIZES) -> Path:
    """Noise upon another colour in each picture, some of them in a folder below."""
    rng = np.random.default_rng(seed)
    (folder / "below").mkdir(parents=True)
    for place, (width, height) in enumerate(sizes):
        pixels = rng.integers(0, 100, (height, width, 3)) + rng.integers(0, 156, 3)
        name = f"below/{place}.jpg" if place % 2 else f"{place}.png"
        Image.fromarray(pixels.astype(np.uint8)).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("pictures")
    return draw(root / "one", 1), draw(root / "other", 2, SIZES[:5])


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file for torch-fidelity's network, drawn so that what it sees does not fade from layer to layer."""
    network = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3").FeatureExtractorInceptionV3

    class New(network):
        def load_state_dict(self, *_, **__):
            """Nothing: it begins as it is built."""

    nothing, path = BytesIO(), tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save({}, nothing)
    nothing.seek(0)
    torch.manual_seed(0)
    new = New("new", ["2048"], feature_extractor_weights_path=nothing)
    for layer in new.modules():
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    torch.save(new.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def see(weights: Path) -> Callable[[Tensor], np.ndarray]:
    return inception(weights, CPU)


@pytest.mark.parametrize(("count", "length"), [(200, 48), (60, 48), (400, 7), (5, 1)])
def test_the_distance_is_the_one_of_a_matrix_root(count: int, length: int):
    sqrtm = pytest.importorskip("scipy.linalg").sqrtm
    a, b = features(1, count, length), features(2, count + 9, length)
    s, t = (np.cov(each, rowvar=False).reshape(length, length) for each in (a, b))
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(s + t - 2 * sqrtm(s @ t).real)
    assert distance(statistics(a), statistics(b)) == pytest.approx(expected, rel=1e-6)


def test_the_distance_of_independent_features_is_their_sum():
    one = Statistics(np.array([0.0, 5.0, -1.0]), np.diag([4.0, 1.0, 0.0]), 9)
    other = Statistics(np.array([3.0, 5.0, 1.0]), np.diag([1.0, 9.0, 25.0]), 7)
    # of each: (m1 - m2)² + (s1 - s2)², s being standard deviations
    assert distance(one, other) == pytest.approx((9 + 1) + (0 + 4) + (4 + 25))


@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(2, 30), st.integers(2, 30))
def test_the_distance_is_a_distance(seed: int, length: int, count: int, others: int):
    a, b = features(seed, count, length), features(seed + 1, others, length)
    one, other = statistics(a), statistics(b)
    found, scale = distance(one, other), np.trace(one.sigma + other.sigma)
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(length, length)))[0]
    assert found >= 0 and 0 <= distance(one, one) <= 1e-6 * scale
    # Few pictures have singular covariances: rounding gives 1e-16 for an eigenvalue of 0, and its root is 1e-8.
    assert distance(other, one) == pytest.approx(found, rel=1e-6, abs=1e-6 * scale)
    assert distance(statistics(a @ turn), statistics(b @ turn)) == pytest.approx(found, rel=1e-6, abs=1e-6 * scale)
    assert distance(one, Statistics(one.mu + 2, one.sigma, 9)) == pytest.approx(4 * length, abs=1e-6 * scale)


@given(st.integers(0, 10**6), st.lists(st.integers(1, 9), min_size=2, max_size=9), st.sampled_from([0, 1e6]))
def test_batches_of_any_size_make_the_mean_and_covariance_of_all(seed: int, sizes: list[int], far: float):
    whole = features(seed, sum(sizes), 5) + far
    found = moments(np.split(whole, np.cumsum(sizes)[:-1]))
    assert found.count == len(whole) and found.mu.dtype == found.sigma.dtype == np.float64
    np.testing.assert_allclose(found.mu, whole.mean(axis=0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.sigma, np.cov(whole, rowvar=False), rtol=1e-6, atol=1e-8)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_the_score_is_torch_fidelitys(folders: tuple[Path, Path], weights: Path, see, tmp_path: Path):
    torch_fidelity = pytest.importorskip("torch_fidelity")
    # One at a time, for it cannot put pictures of several sizes together as we do.
    options = {"fid": True, "cuda": False, "cache": False, "verbose": False, "samples_find_deep": True, "batch_size": 1}
    theirs = torch_fidelity.calculate_metrics(
        input1=str(folders[0]), input2=str(folders[1]), feature_extractor_weights_path=str(weights), **options
    )
    write_statistics(tmp_path / "one.npz", moments(features_of(pictures_of(folders[0]), see, batch=4)))
    ours = fid(tmp_path / "one.npz", folders[1], see, batch=3)
    assert ours > 1e-2 and ours == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3)


@pytest.mark.parametrize("batch", [1, 2, 4, 99])
def test_every_picture_counts_once_whatever_the_batch(folders: tuple[Path, Path], batch: int):
    means = [
        np.array([np.asarray(Image.open(file), dtype=np.float64).mean(axis=(0, 1)) for file in folder.rglob("*.*")])
        for folder in folders
    ]
    told: list[tuple[int, int]] = []
    found = fid(*folders, colours, batch, lambda *now: told.append(now))
    assert found == pytest.approx(distance(*map(statistics, means)), rel=1e-5)
    steps = [*range(batch, 6, batch), 6, *range(6 + batch, 11, batch), 11]
    assert told == [(done, 11) for done in steps]


def test_progress_cancels(folders: tuple[Path, Path]):
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fid(*folders, colours, 2, stop)


def test_statistics_come_back_as_they_were(folders: tuple[Path, Path], tmp_path: Path):
    kept = [moments(features_of(pictures_of(folder), colours)) for folder in folders]
    paths = [tmp_path / "new folder/one.npz", tmp_path / "other"]
    for path, each in zip(paths, kept, strict=True):
        write_statistics(path, each)
        again = read_statistics(path)
        assert (again.mu == each.mu).all() and (again.sigma == each.sigma).all() and again.count == each.count
    assert fid(paths[0], paths[1], colours) == distance(*kept)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["new folder", "one.npz", "other"]


def make(path: Path, kind: str) -> Path:
    """One of the things that are no set of pictures."""
    good = {"mu": np.zeros(3), "sigma": np.eye(3), "count": np.array(9)}
    if kind in ("empty", "one picture", "broken"):
        path.mkdir()
        for name in {"one picture": "a", "broken": "ab"}.get(kind, ""):
            Image.new("RGB", (8, 8)).save(path / f"{name}.png")
        if kind == "broken":
            Image.effect_noise((40, 40), 50).save(path / "b.png")
            (path / "b.png").write_bytes((path / "b.png").read_bytes()[:500])
    elif kind == "text":
        path.write_text("mu, sigma")
    elif kind == "array":
        with path.open("wb") as file:
            np.save(file, np.eye(3))
    elif kind != "missing":
        wrong = {"no count": {"count": None}, "of one": {"count": np.array(1)}, "NaN": {"mu": np.full(3, np.nan)}}
        wrong |= {"shapes": {"sigma": np.eye(4)}, "objects": {"mu": np.array([{}, [], ()], dtype=object)}}
        with path.open("wb") as file:
            np.savez(file, **{name: value for name, value in {**good, **wrong[kind]}.items() if value is not None})
    return path


@pytest.mark.parametrize(
    ("kind", "error", "sentence"),
    [
        ("missing", FileNotFoundError, "neither a folder of pictures nor statistics at .*set: check the path"),
        ("empty", ValueError, "set has 0 pictures, FID needs 2 or more: name another folder"),
        ("one picture", ValueError, "set has 1 pictures, FID needs 2 or more: name another folder"),
        ("broken", ValueError, "the picture .*b.png cannot be read .*: save it again"),
        *((kind, ValueError, "set holds no mu, sigma and count: write it with write_statistics")
          for kind in ("text", "array", "no count", "of one", "NaN", "shapes", "objects")),
    ],
)  # fmt: skip
def test_what_is_no_set_of_pictures_is_refused(kind: str, error: type[Exception], sentence: str, folders, tmp_path):
    with pytest.raises(error, match=sentence):
        fid(folders[0], make(tmp_path / "set", kind), colours)


def test_features_of_another_network_are_refused():
    one, other = (statistics(features(0, 9, length)) for length in (3, 4))
    with pytest.raises(ValueError, match="got 3 and 4 features, expected as many: use the same network"):
        distance(one, other)


class Touch:
    """In a pickle: a call of `Path.touch` on whoever loads it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("kind", ["text", "empty", "pickle", "tensor", "names", "shapes", "cut"])
def test_other_files_than_inceptions_weights_are_refused(kind: str, weights: Path, tmp_path: Path):
    path, ran = tmp_path / "w.pth", tmp_path / "ran"
    if kind in ("text", "empty", "cut"):
        path.write_bytes({"text": b"weights", "empty": b"", "cut": weights.read_bytes()[:5000]}[kind])
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({"fc.bias": Touch(ran)}, protocol=2))
    else:
        state = torch.load(weights, weights_only=True)
        wrong = {
            "tensor": torch.zeros(3),
            "names": {"a": torch.zeros(3)},
            "shapes": {**state, "fc.bias": torch.ones(3)},
        }
        torch.save(wrong[kind], path)
    with pytest.raises(
        ValueError, match="w.pth does not hold the weights of FID's Inception network: give weights-ince"
    ):
        inception(path, CPU)
    assert not ran.exists()


def test_missing_weights_and_a_missing_library_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    name = "torch_fidelity.feature_extractor_inceptionv3"
    pytest.importorskip(name)
    with pytest.raises(FileNotFoundError, match="no weights at .*none.pth: give weights-inception-2015"):
        inception(tmp_path / "none.pth")
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match='FID needs torch-fidelity: pip install "torch-fidelity>=0.4"'):
        inception(tmp_path / "none.pth")


def test_the_commands_measure_and_keep(folders: tuple[Path, Path], weights: Path, see, tmp_path: Path, capsys):
    keep, out = tmp_path / "reference.npz", tmp_path / "fid.json"
    more = ["--device", "cpu", "--batch-size", "4", "--keep", str(keep), "--out", str(out)]
    assert main(["evaluate", "fid", *map(str, folders), str(weights), *more]) == 0
    expected = fid(*folders, see)
    assert capsys.readouterr().out == f"{expected:.4f}  of 6 pictures and 5\n"
    told = json.loads(out.read_text())
    assert told["value"] == pytest.approx(expected) and (told["pictures"], told["reference"]) == (6, 5)
    assert told["network"] == {"name": weights.name, "sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}
    pytest.importorskip("matplotlib")
    (tmp_path / "prompts.txt").write_text("a red circle\na blue square\n")
    settings = ["--guidances", "3", "--step-counts", "2", "--device", "cpu", "--dtype", "fp32"]
    measured = ["--inception", str(weights), "--reference", str(keep), "--out", str(tmp_path / "sweep")]
    assert main(["evaluate", "sweep", str(tmp_path / "prompts.txt"), *settings, *measured]) == 0
    (row,) = csv.DictReader((tmp_path / "sweep.csv").open())
    assert float(row["fid"]) == pytest.approx(fid(tmp_path / "sweep/guidance_3_steps_2", keep, see), rel=1e-4)
