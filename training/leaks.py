"""`python -m training leaks DATASET`: radiographs that are on both sides of a split, whatever was done to them.

A reader that met a test radiograph in training is asked what it remembers. Copies are found by their pixels alone:
byte-identical files, the same picture at another size or quality, turned by any angle, mirrored. Counted and listed.

Every picture's inscribed disc is sampled on rings, so that turning it becomes a shift along the ring and mirroring the
reverse; the best correlation over all shifts of every pair is one product of Fourier transforms. Pairs alike at that
scale (two patients' knees can be) are compared again, aligned, in their fine lines.
"""

from __future__ import annotations

import argparse
import csv
import io
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps
from scipy.ndimage import gaussian_filter, map_coordinates

from training.data import Sample, named, open_dataset

RINGS, ANGLES = 24, 128
COARSE, FINE = 96, 160
"""Pixels of a side for the rings, and for the comparison of fine lines."""
ALIKE = 0.94
"""Correlation on the rings. Kaggle multi-region, 300 files against all 3,887: every pair of one radiograph (by its
manifest) lies above 0.95, every other pair below 0.94."""
SAME_LINES = 0.8
"""Correlation of the fine lines once aligned. All but one of 13,905 pairs of one radiograph of that set lie above 0.91;
the knees of two patients of FracAtlas reach 0.74. What lies between are exposures of one patient, repeated."""
_AT_ONCE = 64

_Floats = npt.NDArray[np.float32]
_Complex = npt.NDArray[np.complex64]


@dataclass(frozen=True)
class Pair:
    """Two files that show one radiograph, or may: the places of two samples.

    Attributes
    ----------
    one, other
        Places among the samples.
    alike
        Correlation on the rings, -1 to 1.
    lines
        Correlation of the fine lines once aligned, -1 to 1.
    angle
        Degrees that `other` is turned by against `one`, -180 to 180.
    mirrored
        Whether `other` is mirrored.
    """

    one: int
    other: int
    alike: float
    lines: float
    angle: float
    mirrored: bool

    @property
    def kind(self) -> str:
        """What was done: "near-duplicate", "rotated" or "mirrored"."""
        if self.mirrored:
            return "mirrored"
        return "near-duplicate" if abs(self.angle) < 360 / ANGLES else "rotated"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add what `leaks` takes."""
    parser.add_argument("dataset", help="a data set below --data (fracatlas, kaggle_multiregion), or a folder")
    parser.add_argument("--output", type=Path, help="the list, as CSV (runs/leaks/DATASET.csv)")


def run(options: argparse.Namespace) -> None:
    """Find, count and list."""
    dataset = open_dataset(named(options.dataset, options.data))
    for problem in dataset.problems:
        print(problem)
    samples = dataset.samples
    copies = find(samples)
    print(table(samples, copies))
    output = options.output or Path("runs", "leaks", f"{dataset.name}.csv")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(listed(samples, copies), encoding="utf-8")
    print(f"Every leaked image with what it is a copy of: {output}")


# --- finding ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Copies:
    """Which samples show the same radiograph.

    Attributes
    ----------
    groups
        For each sample the number of its radiograph: samples of one number are copies of each other, some by way of a
        third.
    pairs
        Distinct files found alike, by the places of the first sample that has each: as many as join every radiograph's
        files, not every two of them.
    first
        For each sample the first one with the same bytes.
    """

    groups: npt.NDArray[np.intp]
    pairs: tuple[Pair, ...]
    first: npt.NDArray[np.intp]


def find(samples: Sequence[Sample]) -> Copies:
    """Compare every distinct file with every other one."""
    seen: dict[str, int] = {}
    first = np.array([seen.setdefault(sample.sha256, at) for at, sample in enumerate(samples)], dtype=np.intp)
    places = np.unique(first)
    rings = np.stack([_rings(samples[at].path) for at in places]) if len(places) else np.zeros((0, RINGS, ANGLES))
    spectra = np.fft.rfft(rings, axis=2).astype(np.complex64)
    fine = _Fine([samples[at].path for at in places])
    pairs = []
    home = list(range(len(places)))
    for one, other, alike, shift, mirrored in _candidates(spectra):
        if _root(home, one) == _root(home, other):
            continue
        angle = 360 * shift / ANGLES
        lines = fine.compared(one, other, angle, mirrored)
        if lines >= SAME_LINES:
            angle = (angle + 180) % 360 - 180
            pairs.append(Pair(int(places[one]), int(places[other]), alike, lines, angle, mirrored))
            home[_root(home, other)] = _root(home, one)
    number = {int(place): _root(home, at) for at, place in enumerate(places)}
    return Copies(np.array([number[int(at)] for at in first], dtype=np.intp), tuple(pairs), first)


def groups(samples: Sequence[Sample]) -> list[str]:
    """Return a group for each sample that its copies share, for splits that must not part them."""
    return [f"{number:06}" for number in find(samples).groups]


def _root(home: list[int], at: int) -> int:
    while home[at] != at:
        home[at] = home[home[at]]
        at = home[at]
    return at


def _rings(path: Path) -> _Floats:
    """Return the disc on rings, (RINGS, ANGLES), so that a product of two is their correlation over the disc's area."""
    with Image.open(path) as picture:
        grey = np.asarray(picture.convert("L").resize((COARSE, COARSE), Image.Resampling.BOX), dtype=np.float32)
    radius = (np.arange(RINGS)[:, np.newaxis] + 0.5) / RINGS
    angle = np.arange(ANGLES) / ANGLES * 2 * np.pi
    middle = (COARSE - 1) / 2
    on_rings = map_coordinates(
        grey, [middle * (1 + radius * np.sin(angle)), middle * (1 + radius * np.cos(angle))], order=1
    )
    # A ring stands for an area that grows with its radius.
    on_rings = (on_rings - (on_rings * radius).sum() / (radius.sum() * ANGLES)) * np.sqrt(radius)
    return np.asarray(on_rings / max(float(np.linalg.norm(on_rings)), 1e-6), dtype=np.float32)


def _candidates(spectra: _Complex) -> Iterator[tuple[int, int, float, int, bool]]:
    """Yield pairs alike on the rings: both places, the correlation, the shift along the rings, and whether mirrored."""
    count = len(spectra)
    by_frequency = spectra.transpose(2, 1, 0)
    for start in range(0, count, _AT_ONCE):
        block = spectra[start : start + _AT_ONCE].transpose(2, 0, 1)
        if start % (10 * _AT_ONCE) == 0:
            print(f"{start} of {count} distinct files compared", flush=True)
        plain, plain_shift = _best(block, by_frequency.conj())
        mirrored, mirrored_shift = _best(block, by_frequency)
        for row, other in np.argwhere(np.maximum(plain, mirrored) >= ALIKE).tolist():
            if start + row < other:
                turned = bool(mirrored[row, other] > plain[row, other])
                best, shift = (mirrored, mirrored_shift) if turned else (plain, plain_shift)
                yield start + row, other, float(best[row, other]), int(shift[row, other]), turned


def _best(block: _Complex, others: _Complex) -> tuple[_Floats, npt.NDArray[np.intp]]:
    """Return the best correlation of each pair over all shifts, and the shift."""
    correlation = np.fft.irfft(np.matmul(block, others), n=ANGLES, axis=0)
    return correlation.max(axis=0).astype(np.float32), correlation.argmax(axis=0)


class _Fine:
    """Pictures at the size at which their fine lines are compared, each opened once."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._spectra: dict[int, npt.NDArray[np.complex128]] = {}

    def compared(self, one: int, other: int, angle: float, mirrored: bool) -> float:
        """Return how alike the fine lines are, over all small shifts, with `other` turned back."""
        if one not in self._spectra:
            self._spectra[one] = _lines(self._opened(one))
        best = -1.0
        # Reversing a ring's order turns the picture upside down.
        picture = ImageOps.flip(self._opened(other)) if mirrored else self._opened(other)
        for turn in (angle - 180 / ANGLES, angle, angle + 180 / ANGLES):
            # Angles run clockwise on the rings, where rows run downwards, and the other way round in Pillow.
            back = _lines(picture.rotate(-turn, Image.Resampling.BILINEAR))
            best = max(best, float(np.fft.irfft2(self._spectra[one] * back.conj(), s=(FINE, FINE)).max()))
        return best

    def _opened(self, at: int) -> Image.Image:
        with Image.open(self._paths[at]) as picture:
            return picture.convert("L").resize((FINE, FINE), Image.Resampling.BOX)


def _lines(picture: Image.Image) -> npt.NDArray[np.complex128]:
    """Return the spectrum of a picture's fine lines within the inscribed disc, of length 1 in pixels."""
    grey = np.asarray(picture, dtype=np.float64)
    fine = gaussian_filter(grey, 1.0) - gaussian_filter(grey, 3.0)
    # Exposure and cameras differ: a bright implant must not drown all else.
    fine /= np.sqrt(gaussian_filter(fine**2, 8.0)) + 1.0
    y, x = np.mgrid[-1 : 1 : FINE * 1j, -1 : 1 : FINE * 1j]
    fine *= np.clip((0.95 - np.hypot(x, y)) / 0.15, 0, 1)
    return np.asarray(np.fft.rfft2(fine / max(float(np.linalg.norm(fine)), 1e-6)))


# --- counts and list --------------------------------------------------------------------------------------------------

SPLITS = ("train", "validation", "test")


def table(samples: Sequence[Sample], copies: Copies) -> str:
    """Return how many images of each split show what another split shows, as lines of text."""
    lines = [
        f"{len(samples)} images, {len(np.unique(copies.first))} distinct files, "
        f"{len(np.unique(copies.groups))} distinct radiographs",
    ]
    kinds = Counter(pair.kind for pair in copies.pairs)
    joined = ", ".join(f"{kinds[kind]} {kind}" for kind in ("near-duplicate", "rotated", "mirrored"))
    lines.append(f"Files joined to another of their radiograph: {joined}")
    for split in SPLITS:
        of = [at for at, sample in enumerate(samples) if sample.split == split]
        for other in SPLITS[: SPLITS.index(split)]:
            there = [at for at, sample in enumerate(samples) if sample.split == other]
            if of and there:
                same, shown = (np.isin(number[of], number[there]) for number in (copies.first, copies.groups))
                lines.append(
                    f"{split}: {same.sum()} of {len(of)} are byte for byte in {other} ({same.mean():.1%}), "
                    f"{shown.sum()} show a radiograph that is in {other} ({shown.mean():.1%})"
                )
    return "\n".join(lines)


def listed(samples: Sequence[Sample], copies: Copies) -> str:
    """Return, as CSV, every image of a split whose radiograph is in an earlier one, with one example of it there."""
    members: dict[int, list[int]] = defaultdict(list)
    for at, number in enumerate(copies.groups.tolist()):
        members[number].append(at)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["image", "split", "fractured", "copy_of", "in_split", "fractured_there", "kind"])
    for at, sample in enumerate(samples):
        earlier = SPLITS[: SPLITS.index(sample.split)]
        twins = [other for other in members[int(copies.groups[at])] if samples[other].split in earlier]
        if twins:
            identical = [other for other in twins if copies.first[other] == copies.first[at]]
            twin, kind = samples[(identical or twins)[0]], "identical" if identical else "same radiograph"
            of_both = [(one.path.name, one.split, int(one.fractured)) for one in (sample, twin)]
            writer.writerow([*of_both[0], *of_both[1], kind])
    return text.getvalue()
