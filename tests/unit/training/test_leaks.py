"""Copies across splits are found whatever was done to them, and different radiographs are not taken for copies."""

from __future__ import annotations

import argparse
import csv
import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from scipy.ndimage import gaussian_filter

from tests.phantom import limb
from training import leaks
from training.data import Sample, check_groups, data_root, split_groups
from training.data.manifests import kaggle


def radiograph(number: int) -> Image.Image:
    """A limb with trabecular texture of its own: numbers differ in their fine lines, and little else."""
    random = np.random.default_rng(number)
    texture = gaussian_filter(random.normal(0, 1, (320, 320)), 1.5)
    grey = limb(320, 320).astype(np.float64) * (0.85 + 0.6 * texture)
    return Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8))


def sample(path: Path, picture: Image.Image, split: str, **options: object) -> Sample:
    picture.save(path, **options)  # type: ignore[arg-type] # Pillow's own options
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return Sample(path, sha256, fractured=True, group=path.stem, fold=None, hardware=False, split=split)


CHANGES = {
    "the same bytes": lambda picture: picture,
    "turned by 25 degrees": lambda picture: picture.rotate(25, Image.Resampling.BICUBIC),
    "turned by 90 degrees": lambda picture: picture.rotate(90),
    "mirrored": ImageOps.mirror,
    "mirrored and turned": lambda picture: ImageOps.mirror(picture).rotate(-130, Image.Resampling.BICUBIC),
    "smaller": lambda picture: picture.resize((200, 200), Image.Resampling.LANCZOS),
    "darker": lambda picture: picture.point(lambda grey: grey * 0.7 + 10),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_copy_is_found_and_another_radiograph_is_not(tmp_path: Path, change: str) -> None:
    samples = [
        sample(tmp_path / "a.png", radiograph(1), "train"),
        sample(tmp_path / "other.png", radiograph(2), "train"),
        sample(tmp_path / "copy.png", CHANGES[change](radiograph(1)), "test"),
    ]
    copies = leaks.find(samples)
    assert copies.groups[0] == copies.groups[2] != copies.groups[1]
    assert (copies.first[2] == 0) == (change == "the same bytes")


def test_a_jpeg_of_low_quality_is_a_near_duplicate(tmp_path: Path) -> None:
    samples = [
        sample(tmp_path / "a.png", radiograph(1), "train"),
        sample(tmp_path / "a.jpg", radiograph(1), "test", quality=40),
    ]
    (pair,) = leaks.find(samples).pairs
    assert (pair.kind, pair.angle, pair.mirrored) == ("near-duplicate", 0.0, False)


def test_the_angle_and_the_mirroring_of_a_copy_are_told(tmp_path: Path) -> None:
    turned = radiograph(1).rotate(45, Image.Resampling.BICUBIC)
    samples = [
        sample(tmp_path / "a.png", radiograph(1), "train"),
        sample(tmp_path / "b.png", turned, "test"),
    ]
    (pair,) = leaks.find(samples).pairs
    assert (pair.kind, pair.mirrored) == ("rotated", False)
    assert abs(pair.angle) == pytest.approx(45, abs=3)
    mirrored = [samples[0], sample(tmp_path / "c.png", ImageOps.mirror(radiograph(1)), "test")]
    assert leaks.find(mirrored).pairs[0].kind == "mirrored"


def test_counts_and_list_name_every_leaked_image_once(tmp_path: Path) -> None:
    samples = [
        sample(tmp_path / "a.png", radiograph(1), "train"),
        sample(tmp_path / "b.png", radiograph(2), "train"),
        sample(tmp_path / "same.png", radiograph(1), "test"),
        sample(tmp_path / "turned.png", radiograph(1).rotate(40, Image.Resampling.BICUBIC), "test"),
        sample(tmp_path / "new.png", radiograph(3), "test"),
    ]
    copies = leaks.find(samples)
    text = leaks.table(samples, copies)
    assert "5 images, 4 distinct files, 3 distinct radiographs" in text
    assert "test: 1 of 3 are byte for byte in train (33.3%), 2 show a radiograph that is in train (66.7%)" in text
    rows = list(csv.DictReader(leaks.listed(samples, copies).splitlines()))
    assert [(row["image"], row["copy_of"], row["kind"]) for row in rows] == [
        ("same.png", "a.png", "identical"),
        ("turned.png", "a.png", "same radiograph"),
    ]


def test_a_split_by_these_groups_parts_no_copies(tmp_path: Path) -> None:
    pictures = [radiograph(number // 2).rotate(30 * (number % 2), Image.Resampling.BICUBIC) for number in range(16)]
    samples = [sample(tmp_path / f"{at}.png", picture, "train") for at, picture in enumerate(pictures)]
    names = leaks.groups(samples)
    assert [names[at] == names[at + 1] for at in range(0, 16, 2)] == [True] * 8
    assert len(set(names)) == 8
    grouped = [
        Sample(one.path, one.sha256, one.fractured, group, one.fold, one.hardware)
        for one, group in zip(samples, names, strict=True)
    ]
    check_groups(split_groups(grouped))


@pytest.mark.timeout(300)
@pytest.mark.skipif(not (data_root() / "kaggle_multiregion").is_dir(), reason="OSTEON_TEST_DATA has no Kaggle set")
def test_the_published_splits_leak_is_found_from_the_pixels_alone() -> None:
    samples = []
    for _, entry in kaggle(data_root() / "kaggle_multiregion"):
        sha256 = hashlib.sha256(entry.path.read_bytes()).hexdigest()
        samples.append(Sample(entry.path, sha256, entry.fractured, "", None, hardware=False, split=entry.split))
    # Of the training split what is byte for byte in test, and every twentieth image: all of it takes ten times as long,
    # and its copies of the same radiographs add nothing to what is counted.
    of_test = {one.sha256 for one in samples if one.split == "test"}
    samples = [one for at, one in enumerate(samples) if one.sha256 in of_test or at % 20 == 0]
    copies = leaks.find(samples)
    text = leaks.table(samples, copies)
    assert "test: 491 of 506 are byte for byte in train" in text
    assert "499 show a radiograph that is in train" in text


def test_the_command_prints_the_counts_and_writes_the_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, picture in (("train", radiograph(1)), ("test", radiograph(1).rotate(60))):
        for label, number in (("fractured", 0), ("normal", 5)):
            (tmp_path / "set" / folder / label).mkdir(parents=True)
            (picture if number == 0 else radiograph(number + len(folder))).save(
                tmp_path / "set" / folder / label / f"{number}.png"
            )
    parser = argparse.ArgumentParser()
    leaks.configure(parser)
    options = parser.parse_args([str(tmp_path / "set"), "--output", str(tmp_path / "list.csv")])
    options.data = tmp_path
    leaks.run(options)
    assert "test: 0 of 2 are byte for byte in train (0.0%), 1 show a radiograph" in capsys.readouterr().out
    assert (tmp_path / "list.csv").read_text().count("\n") == 2
