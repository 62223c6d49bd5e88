"""`python -m training show [DATASET]`: what the data looks like, and what augmentation makes of it, as PNG.

Looking comes before training: a wrong label, a burnt-in marker or a turn that no radiograph has is seen at once and
found late in a figure. Pictures are shown as the model sees them, through the pixel pipeline. They are radiographs, and
stay where they are written.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from dicom_node.pixels import ModelInput, NotAnalysable
from training.cache import boxes_in_input
from training.data import Sample, named, open_dataset, prepared
from training.plots import BLUE, GREY, ORANGE, VERMILLION, new_figure, quiet, save

_Images = npt.NDArray[np.float32]

SIZE = (224, 224)
"""Rows and columns that a picture is shown in."""
COLUMNS, ROWS = 6, 4
"""Of the grids of samples."""
CHANGED = 5
"""So many augmented pictures are shown beside each one."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "dataset", nargs="?", default="fracatlas", help="a data set below --data, or a folder (fracatlas)"
    )
    parser.add_argument("--output", type=Path, help="folder to write to (runs/show/DATASET)")
    parser.add_argument("--seed", type=int, default=1, help="draws other samples")


def run(options: argparse.Namespace) -> None:
    """Write the pictures."""
    dataset = open_dataset(named(options.dataset, options.data))
    for problem in dataset.problems:
        print(problem)
    samples = dataset.samples
    folder = options.output or Path("runs", "show", dataset.name)
    for path in show(samples, folder, seed=options.seed):
        print(path)


def show(samples: Sequence[Sample], folder: Path, *, seed: int = 1) -> list[Path]:
    """Write grids of both classes, augmented samples and counts into `folder`, and return their paths.

    Images of a test split are counted and not shown: who has looked at them chooses with them in mind. What cannot be
    augmented for want of Keras is left out, and said.
    """
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    written = []
    drawn: list[Sample] = []
    for fractured, name in ((True, "fractured"), (False, "not-fractured")):
        shown = [sample for sample in samples if sample.fractured == fractured and sample.split != "test"]
        chosen = choice(shown, ROWS * COLUMNS, random)
        if chosen:
            save(grid(chosen, name.replace("-", " ")), folder / f"samples-{name}.png", few_colours=False)
            written.append(folder / f"samples-{name}.png")
            drawn += chosen[: 3 if fractured else 2]
    save(counts(samples), folder / "counts.png")
    written.append(folder / "counts.png")
    try:
        from training.networks.augment import Augmentation
    except ImportError as missing:
        print(f"Augmented samples are left out: {missing}")
        return written
    save(augmented(drawn, Augmentation(seed=seed)), folder / "augmented.png", few_colours=False)
    return [*written, folder / "augmented.png"]


def choice(samples: Sequence[Sample], count: int, random: np.random.Generator) -> list[Sample]:
    """Draw samples without repeats, in the order of the data; all of them when there are not more."""
    places = random.permutation(len(samples))[:count]
    return [samples[at] for at in sorted(places)]


# --- grids ------------------------------------------------------------------------------------------------------------


def grid(samples: Sequence[Sample], name: str) -> Figure:
    """Draw samples beside each other with their names and fracture boxes."""
    down = math.ceil(len(samples) / COLUMNS)
    figure = new_figure(
        f"{len(samples)} samples: {name}; orange: fracture box", width=2.2 * COLUMNS, height=0.5 + 2.4 * down
    )
    for axes, sample in zip(_tiles(figure, down, COLUMNS), samples, strict=False):
        axes.set_title(sample.path.stem, fontsize=8)
        image = _read(sample)
        if image is None:
            axes.text(0.5, 0.5, "refused", ha="center", transform=axes.transAxes)
        else:
            _picture(axes, image.pixels)
            for xmin, ymin, xmax, ymax in boxes_in_input(sample, image):
                size = xmax - xmin, ymax - ymin
                axes.add_patch(Rectangle((xmin, ymin), *size, fill=False, edgecolor=ORANGE, linewidth=1.2))
    return figure


def augmented(samples: Sequence[Sample], change: Callable[..., object]) -> Figure:
    """Draw each sample as it is and as augmentation changes it; its fracture boxes have to move with the picture.

    `change` is a Keras layer, called with float32 (n, rows, columns, 2), grey and boxes, and `training=True`.
    """
    shown = [(sample, image) for sample in samples if (image := _read(sample)) is not None]
    figure = new_figure(
        f"{len(shown)} samples as they are, and augmented {CHANGED} times; orange: fracture box",
        width=2.2 * (1 + CHANGED),
        height=0.5 + 2.4 * len(shown),
    )
    tiles = iter(_tiles(figure, max(len(shown), 1), 1 + CHANGED))
    for sample, image in shown:
        before = np.stack([image.pixels.astype(np.float32), mask(sample, image)], axis=-1)
        batch = np.repeat(before[np.newaxis], CHANGED, axis=0)
        after: _Images = np.asarray(_numpy(change(batch, training=True)), dtype=np.float32)
        for at, one in enumerate((before, *after)):
            axes = next(tiles)
            axes.set_title(sample.path.stem if at == 0 else "", fontsize=8)
            _picture(axes, one[..., 0])
            if (one[..., 1] > 0.5).any():
                axes.contour(one[..., 1], levels=[0.5], colors=ORANGE, linewidths=1.2)
    return figure


def mask(sample: Sample, image: ModelInput) -> _Images:
    """Return 1 inside the sample's fracture boxes and 0 elsewhere, in the shape of the model's input."""
    drawn = np.zeros(image.pixels.shape, dtype=np.float32)
    for xmin, ymin, xmax, ymax in boxes_in_input(sample, image):
        drawn[math.floor(ymin) : math.ceil(ymax), math.floor(xmin) : math.ceil(xmax)] = 1.0
    return drawn


def _read(sample: Sample) -> ModelInput | None:
    try:
        return prepared(sample, SIZE)
    except NotAnalysable:
        return None


def _numpy(tensor: object) -> object:
    """What numpy can read: a tensor of PyTorch may lie on a GPU or know its gradient."""
    from keras import ops

    return ops.convert_to_numpy(tensor)


def _tiles(figure: Figure, down: int, across: int) -> list[Axes]:
    tiles = list(figure.subplots(down, across, squeeze=False).ravel())
    for axes in tiles:
        axes.set_axis_off()
    return tiles


def _picture(axes: Axes, pixels: npt.NDArray[np.uint8] | _Images) -> None:
    rows, columns = pixels.shape
    # Points of the model's input are counted from the corner of a pixel, not from its middle.
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, extent=(0, columns, rows, 0))


# --- counts -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Count:
    """How many images of one kind there are, and with a fracture."""

    name: str
    images: int
    fractured: int


def counts(samples: Sequence[Sample]) -> Figure:
    """Draw how many images there are of each split and fold, region and view, with a fracture and without."""
    fractured = sum(sample.fractured for sample in samples)
    groups = len({sample.group for sample in samples})
    share = fractured / max(len(samples), 1)
    title = f"{len(samples)} images in {groups} groups, {fractured} with a fracture ({share:.1%})"
    panels = {name: kinds for name, kinds in counted(samples).items() if kinds}
    lines = [max(len(kinds), 2) for kinds in panels.values()]
    figure = new_figure(title, width=7.2, height=1.3 + sum(0.3 * count + 0.45 for count in lines))
    all_axes = figure.subplots(len(panels), 1, squeeze=False, sharex=True, gridspec_kw={"height_ratios": lines}).ravel()
    for axes, (name, kinds) in zip(all_axes, panels.items(), strict=True):
        _bars(axes, name, kinds)
    all_axes[0].set_xlim(0, 1.3 * max((kind.images for kinds in panels.values() for kind in kinds), default=1))
    all_axes[-1].set_xlabel("images")
    figure.align_ylabels(all_axes)
    figure.legend(*all_axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure


def counted(samples: Sequence[Sample]) -> dict[str, list[Count]]:
    """Count images by split, fold, region, view and what else the data says; an image may show several regions."""
    return {
        "split": _counted(samples, lambda sample: [sample.split]),
        "fold": _counted(samples, lambda sample: [] if sample.fold is None else [str(sample.fold)]),
        "region": _counted(samples, lambda sample: sample.regions),
        "view": _counted(samples, lambda sample: sample.views),
        "shows": _counted(samples, _shows),
    }


def _shows(sample: Sample) -> list[str]:
    known = {"hardware": sample.hardware, "several exposures": sample.multiscan, "fracture boxes": bool(sample.boxes)}
    return [name for name, it_does in known.items() if it_does]


def _counted(samples: Sequence[Sample], kinds: Callable[[Sample], Iterable[str]]) -> list[Count]:
    images, fractured = Counter[str](), Counter[str]()
    for sample in samples:
        for kind in kinds(sample):
            images[kind] += 1
            fractured[kind] += sample.fractured
    return [Count(name, images[name], fractured[name]) for name in sorted(images)]


def _bars(axes: Axes, name: str, kinds: Sequence[Count]) -> None:
    places = range(len(kinds))
    axes.barh(places, [kind.fractured for kind in kinds], color=VERMILLION, label="fracture")
    left = [kind.fractured for kind in kinds]
    axes.barh(places, [kind.images - kind.fractured for kind in kinds], left=left, color=BLUE, label="no fracture")
    for at, kind in enumerate(kinds):
        text = f" {kind.images}, {kind.fractured / kind.images:.0%} fractured"
        axes.text(kind.images, at, text, va="center", fontsize=8, color=GREY)
    axes.set_yticks(places, [kind.name for kind in kinds])
    axes.set_ylabel(name)
    axes.invert_yaxis()
    quiet(axes)
    axes.grid(visible=False, axis="y")
