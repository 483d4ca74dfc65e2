"""The small real data that normkit ships: where it is, and readers for it (sources and licenses: data/README.md)."""

import gzip
from functools import cache
from pathlib import Path

import numpy as np

from normkit.rng import stream

_PACKAGE = Path(__file__).resolve().parent


def data_path(name: str = "") -> Path:
    """Path of a file in data/ (a checkout) or in normkit/_data (an installed wheel); without a name, the folder.

    Raises FileNotFoundError, which lists the files that are there, when there is none of that name.
    """
    folders = [_PACKAGE / "_data", _PACKAGE.parent / "data"]
    folder = next((f for f in folders if (f / "digits.csv.gz").is_file()), None)
    if folder is None:
        raise FileNotFoundError(
            f"normkit's data files are missing: neither {folders[0]} nor {folders[1]} has them; "
            "reinstall normkit, or work in a complete checkout"
        )
    path = (folder / name).resolve()
    if not path.exists() or not path.is_relative_to(folder):
        there = ", ".join(sorted(p.name for p in folder.iterdir()))
        raise FileNotFoundError(f"normkit has no data file {name!r}; it has {there}")
    return path


@cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """UCI handwritten digits: images (1797, 64) float64 in [0, 1], row-major 8x8, and labels (1797,) int64 in 0..9.

    The arrays are read once and are read-only; copy them before you write to them.
    """
    with gzip.open(data_path("digits.csv.gz"), "rt") as lines:
        table = np.loadtxt(lines, delimiter=",", dtype=np.int64)
    images, labels = table[:, :-1] / 16, table[:, -1].copy()
    images.setflags(write=False)
    labels.setflags(write=False)
    return images, labels


@cache
def standardized_digits(order: str) -> tuple[np.ndarray, np.ndarray]:
    """`digits()` with mean 0 and variance 1 over all pixels, in a fixed random order that goes by a name; read-only."""
    images, labels = digits()
    picks = stream(0, *order.split("/")).permutation(len(images))
    images, labels = (images[picks] - images.mean()) / images.std(), labels[picks]
    images.setflags(write=False)
    labels.setflags(write=False)
    return images, labels


@cache
def _sentences() -> tuple[str, ...]:
    lines = data_path("text.txt").read_text(encoding="utf-8").splitlines()
    return tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))


def text() -> list[str]:
    """English sentences (one a string, in the file's order) on which real language models are probed."""
    return list(_sentences())
