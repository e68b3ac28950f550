"""FID: how far apart two sets of pictures are, as the Inception network of 2015 sees them.

With fewer pictures than its 2048 features the covariances are singular, and with few the distance comes out too large:
benchmarks draw 10,000 to 50,000, and only scores of equally many pictures compare.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..bulk.batches import chunks, opened
from ..device import best_device
from ..image import open_image, pictures_below
from ..partial import appearing
from ..values import printable, shown

Features = Callable[[Tensor], np.ndarray]  # pictures (N, 3, H, W), uint8 -> features (N, D)
OnProgress = Callable[[int, int], None]  # (pictures done, of how many); may raise to cancel
WEIGHTS = "give weights-inception-2015-12-05-6726825d.pth of torch-fidelity's release v0.2.0"


@dataclass(frozen=True)
class Statistics:
    """Mean (D,) and covariance (D, D) of features of `count` pictures; raises ValueError for what cannot be that."""

    mu: np.ndarray
    sigma: np.ndarray
    count: int

    def __post_init__(self) -> None:
        fits = self.count > 1 and self.mu.ndim == 1 and self.sigma.shape == 2 * self.mu.shape
        if not (fits and np.isfinite(self.mu).all() and np.isfinite(self.sigma).all()):
            raise ValueError(
                "2 or more pictures have a finite mean (D,) and covariance (D, D): check pictures and weights"
            )


def fid(one: Path, other: Path, see: Features, batch: int = 32, on_progress: OnProgress | None = None) -> float:
    """FID, 0 or more, of two sets: each a folder, with all pictures below it, or a file that `write_statistics` wrote.

    `see` comes from `inception`. Raises what `pictures_of`, `read_statistics`, `features_of` and `distance` raise.
    """
    sides = [pictures_of(path) if path.is_dir() else read_statistics(path) for path in (one, other)]
    total, done, found = sum(len(side) for side in sides if isinstance(side, list)), 0, []
    for side in sides:
        if isinstance(side, list):
            told = on_progress and (lambda now, _, before=done: on_progress(before + now, total))
            done += len(side)
            side = moments(features_of(side, see, batch, told))
        found.append(side)
    return distance(*found)


def statistics_of(path: Path, see: Features, batch: int = 32, on_progress: OnProgress | None = None) -> Statistics:
    """Statistics of a folder's pictures, or those that `write_statistics` kept in a file; raises what these raise."""
    if not path.is_dir():
        return read_statistics(path)
    return moments(features_of(pictures_of(path), see, batch, on_progress))


def distance(one: Statistics, other: Statistics) -> float:
    """Fréchet's |mu1 - mu2|² + tr(S1 + S2 - 2 (S1 S2)^1/2), 0 or more; raises ValueError for another length."""
    if one.mu.shape != other.mu.shape:
        raise ValueError(f"got {len(one.mu)} and {len(other.mu)} features, expected as many: use the same network")
    values, vectors = np.linalg.eigh(one.sigma)
    half = vectors * np.sqrt(values.clip(0))  # half half' = S1
    # S1 S2 has the eigenvalues of the symmetric half' S2 half: real ones, and negative by rounding alone.
    shared = np.linalg.eigvalsh(half.T @ other.sigma @ half).clip(0)
    spread = np.trace(one.sigma) + np.trace(other.sigma) - 2 * np.sqrt(shared).sum()
    return max(0.0, float(np.square(one.mu - other.mu).sum() + spread))


def pictures_of(folder: Path) -> list[Path]:
    """All picture files in a folder and below it; raises ValueError for fewer than 2."""
    found = pictures_below(folder)
    if len(found) < 2:
        raise ValueError(f"{shown(folder)} has {len(found)} pictures, FID needs 2 or more: name another folder")
    return found


def features_of(
    files: Sequence[Path], see: Features, batch: int = 32, on_progress: OnProgress | None = None
) -> Iterator[np.ndarray]:
    """Features (N, D) of picture files, up to `batch` at once; raises what `open_image` raises."""
    done = 0
    for read in opened(chunks(files, batch), lambda path: torch.from_numpy(np.array(open_image(path)))):
        sizes: dict[torch.Size, list[Tensor]] = {}  # the network takes pictures of one size at once
        for _, pixels in read:
            if isinstance(pixels, Exception):  # without it this would be the score of another set
                raise pixels
            sizes.setdefault(pixels.shape, []).append(pixels.permute(2, 0, 1))
        yield from (see(torch.stack(same)) for same in sizes.values())
        done += len(read)
        if on_progress is not None:
            on_progress(done, len(files))


def moments(batches: Iterable[np.ndarray]) -> Statistics:
    """Statistics, in float64 as numpy.cov counts, of features in batches (N, D); raises what `Statistics` raises."""
    count, mean, scatter = 0, np.zeros(1), np.zeros((1, 1))
    for batch in batches:
        own = batch.mean(axis=0, dtype=np.float64)
        centred, shift, total = batch - own, own - mean, count + len(batch)
        # Chan's way to put two parts together: a sum of squares would lose digits where the mean is large.
        scatter = scatter + centred.T @ centred + np.outer(shift, shift) * (count * len(batch) / total)
        mean, count = mean + shift * (len(batch) / total), total
    return Statistics(mean, scatter / max(count - 1, 1), count)


def inception(weights: Path, device: torch.device | None = None) -> Features:
    """torch-fidelity's network: pictures (N, 3, H, W) of any size, uint8, to features (N, 2048), float32.

    Nothing is downloaded, no pickled code runs. Raises ImportError, FileNotFoundError, or ValueError for a wrong file.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise ImportError('FID needs torch-fidelity: pip install "torch-fidelity>=0.4"') from error
    if not weights.is_file():
        raise FileNotFoundError(f"no weights at {printable(weights)}: {WEIGHTS}")
    device, harmless = device or best_device(), BytesIO()
    try:
        # torch-fidelity would run a pickle's code: it gets a copy of the tensors alone.
        torch.save(torch.load(weights, map_location="cpu", weights_only=True), harmless)
        harmless.seek(0)
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=harmless)
    except Exception as error:  # no file of torch's, one with code, other names or shapes: each says so in its own way
        raise ValueError(f"{shown(weights)} does not hold the weights of FID's Inception network: {WEIGHTS}") from error
    network.to(device)
    return torch.inference_mode()(lambda pictures: network(pictures.to(device))[0].cpu().numpy())


def write_statistics(path: Path, statistics: Statistics) -> None:
    """Keep statistics in a .npz (mu, sigma, count), whole or not at all; raises OSError with one sentence."""
    with appearing(path) as new, new.open("wb") as file:
        np.savez(file, mu=statistics.mu, sigma=statistics.sigma, count=np.array(statistics.count))


def read_statistics(path: Path) -> Statistics:
    """What `write_statistics` wrote; raises FileNotFoundError, or ValueError for another file."""
    if not path.is_file():
        raise FileNotFoundError(f"neither a folder of pictures nor statistics at {printable(path)}: check the path")
    try:
        with np.load(path) as kept:  # no pickles, unless one asks for them
            mu, sigma = (kept[name].astype(np.float64) for name in ("mu", "sigma"))
            return Statistics(mu, sigma, int(kept["count"]))
    except Exception as error:  # a file that is no .npz raises BadZipFile, EOFError, TypeError or anything else
        raise ValueError(f"{shown(path)} holds no mu, sigma and count: write it with write_statistics") from error
