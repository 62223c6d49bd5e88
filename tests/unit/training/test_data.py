"""Data sets: what is read from a tree, a manifest or DICOM files, and what is left out by name."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.phantom import limb
from tests.radiographs import radiograph
from training.data import Dataset, check_groups, data_root, open_dataset, prepared
from training.data.splits import Split


def picture(path: Path, number: int) -> Path:
    """Write a picture that no other number gives."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(limb(60 + number, 50)).save(path)
    return path


def tree(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        picture(root / name, number)
    return root


def reasons(dataset: Dataset) -> dict[str, str]:
    return {problem.file: problem.reason for problem in dataset.problems}


# --- a folder for each class ------------------------------------------------------------------------------------------


def test_a_tree_as_kaggle_packs_it_gives_labels_and_splits_by_the_names_of_its_folders(tmp_path: Path) -> None:
    names = (
        "Set/Set/train/fractured/1.png",
        "Set/Set/train/not fractured/2.png",
        "Set/Set/val/fractured/3.png",
        "Set/Set/test/Non_Fractured/4.png",
    )
    dataset = open_dataset(tree(tmp_path, *names))
    assert dataset.problems == ()
    said = {sample.path.name: (sample.fractured, sample.split) for sample in dataset.samples}
    assert said == {
        "1.png": (True, "train"),
        "2.png": (False, "train"),
        "3.png": (True, "validation"),
        "4.png": (False, "test"),
    }
    assert prepared(dataset.samples[0], (32, 32)).pixels.shape == (32, 32)


def test_not_fractured_is_not_taken_for_fractured(tmp_path: Path) -> None:
    words = ("not fractured", "not_fractured", "Non-Fractured", "unfractured", "normal", "No Fracture")
    dataset = open_dataset(tree(tmp_path, *(f"{word}/a.png" for word in words)))
    assert len(dataset.samples) == len(words)
    assert not any(sample.fractured for sample in dataset.samples)


def test_files_that_are_no_whole_picture_are_left_out_by_name(tmp_path: Path) -> None:
    tree(tmp_path, "fractured/good.png", "normal/other.png")
    jpeg = picture(tmp_path / "fractured" / "cut.jpg", 40)
    jpeg.write_bytes(jpeg.read_bytes()[:-200])
    (tmp_path / "fractured" / "notes.txt").write_text("nothing to see")
    (tmp_path / "fractured" / "empty.png").write_bytes(b"")
    dataset = open_dataset(tmp_path)
    assert [sample.path.name for sample in dataset.samples] == ["good.png", "other.png"]
    assert reasons(dataset) == {
        "fractured/cut.jpg": "unreadable: truncated",
        "fractured/empty.png": "unreadable: no picture",
        "fractured/notes.txt": "unreadable: no picture",
    }


def test_copies_are_kept_once_and_contradictions_not_at_all(tmp_path: Path) -> None:
    tree(tmp_path, "train/fractured/a.png", "train/normal/b.png", "train/normal/c.png", "test/normal/d.png")
    for copy, source in (
        ("train/fractured/a2.png", "train/fractured/a.png"),
        ("test/fractured/b.png", "train/normal/b.png"),
        ("test/normal/c.png", "train/normal/c.png"),
    ):
        (tmp_path / copy).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / copy).write_bytes((tmp_path / source).read_bytes())
    dataset = open_dataset(tmp_path)
    left = sorted(sample.path.relative_to(tmp_path).as_posix() for sample in dataset.samples)
    # The same bytes in training and in test are a leak, which is for `leaks` to tell.
    assert left == ["test/normal/c.png", "test/normal/d.png", "train/fractured/a.png", "train/normal/c.png"]
    said = reasons(dataset)
    assert said["train/fractured/a2.png"] == "duplicate of train/fractured/a.png"
    assert said["train/normal/b.png"].startswith("contradictory: test/fractured/b.png")
    assert said["test/fractured/b.png"].startswith("contradictory: train/normal/b.png")


def test_files_below_no_class_are_named_and_a_folder_without_classes_is_refused(tmp_path: Path) -> None:
    dataset = open_dataset(tree(tmp_path / "some", "fractured/a.png", "normal/b.png", "readme.png"))
    assert reasons(dataset) == {"readme.png": "no folder above it is called as a class"}
    with pytest.raises(ValueError, match="No folder in none is called"):
        open_dataset(tree(tmp_path / "none", "cats/a.png"))
    with pytest.raises(FileNotFoundError):
        open_dataset(tmp_path / "nowhere")


def test_a_tree_without_splits_is_split_by_whole_groups(tmp_path: Path) -> None:
    names = [f"{label}/{number}.png" for label in ("fractured", "normal") for number in range(20)]
    dataset = open_dataset(tree(tmp_path, *names))
    parts = {part: tuple(s for s in dataset.samples if s.split == part) for part in ("train", "validation", "test")}
    assert [len(part) for part in parts.values()] == [28, 6, 6]
    check_groups(Split(parts["train"], parts["validation"], parts["test"]))


# --- manifests --------------------------------------------------------------------------------------------------------


def kaggle(root: Path, *entries: tuple[str, str, str, str]) -> Path:
    """Write a manifest of (split, label, picture, radiograph)."""
    (root / "images").mkdir(parents=True)
    with (root / "images.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["split", "label", "original_name", "image", "radiograph"])
        for number, (split, label, image, group) in enumerate(entries):
            if not (root / "images" / image).exists():
                picture(root / "images" / image, number)
            writer.writerow([split, label, f"{number}.png", image, group])
    return root


def test_a_manifest_keeps_its_copies_and_names_what_cannot_be_read(tmp_path: Path) -> None:
    folder = kaggle(
        tmp_path / "kaggle",
        ("train", "fractured", "a.png", "1"),
        ("test", "fractured", "a.png", "1"),
        ("val", "not_fractured", "b.png", "2"),
        ("test", "not_fractured", "c.png", "3"),
    )
    (folder / "images" / "c.png").write_bytes(b"no picture")
    (folder / "images" / "b.png").unlink()
    dataset = open_dataset(folder)
    assert [(sample.split, sample.group) for sample in dataset.samples] == [("train", "1"), ("test", "1")]
    assert dataset.samples[0].sha256 == dataset.samples[1].sha256 != ""
    assert reasons(dataset) == {
        "val/not_fractured/2.png": "there is no such file",
        "test/not_fractured/3.png": "unreadable: no picture",
    }


def test_a_manifest_of_neither_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images.csv").write_text("file,class\na.png,fractured\n")
    with pytest.raises(ValueError, match="neither"):
        open_dataset(tmp_path)


@pytest.mark.skipif(not (data_root() / "fracatlas").is_dir(), reason="OSTEON_TEST_DATA has no FracAtlas")
def test_the_real_fracatlas_is_read_whole() -> None:
    dataset = open_dataset(data_root() / "fracatlas")
    assert (len(dataset.samples), dataset.problems) == (3333, ())
    assert sum(len(sample.boxes) for sample in dataset.samples) == 760


# --- DICOM files ------------------------------------------------------------------------------------------------------


def dicom(path: Path, number: int, patient: str) -> str:
    """Write a Digital X-Ray image; return its SOP Instance UID."""
    made = radiograph(limb(300 + number, 200, highest=4095, dtype=np.uint16))
    made.PatientID = patient
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(path, enforce_file_format=True)
    return str(made.SOPInstanceUID)


def test_dicom_files_are_labelled_by_path_or_uid_and_grouped_by_patient(tmp_path: Path) -> None:
    uids = [
        dicom(tmp_path / name, at, patient)
        for at, (name, patient) in enumerate((("a/1.dcm", "P1"), ("a/2", "P1"), ("3", "P2")))
    ]
    (tmp_path / "labels.csv").write_text(
        f"image,fractured,split\na/1.dcm,yes,train\n{uids[1]},0,train\n{uids[2]},not fractured,test\n"
    )
    dataset = open_dataset(tmp_path)
    assert dataset.problems == ()
    said = {sample.path.name: (sample.fractured, sample.split) for sample in dataset.samples}
    assert said == {"1.dcm": (True, "train"), "2": (False, "train"), "3": (False, "test")}
    groups = {sample.path.name: sample.group for sample in dataset.samples}
    assert groups["1.dcm"] == groups["2"] != groups["3"]
    assert "P1" not in repr(dataset)
    assert prepared(dataset.samples[0], (32, 32)).pixels.shape == (32, 32)


def test_what_is_wrong_with_dicom_files_and_their_labels_is_named(tmp_path: Path) -> None:
    for at, name in enumerate(("good", "cut", "odd", "alone")):
        dicom(tmp_path / name, at, "P1")
    (tmp_path / "cut").write_bytes((tmp_path / "cut").read_bytes()[:-5000])
    (tmp_path / "text").write_text("no DICOM object")
    (tmp_path / "labels.csv").write_text("image,fractured\ngood,1\ngood,0\ncut,1\nodd,perhaps\ntext,0\nmissing,1\n")
    dataset = open_dataset(tmp_path)
    assert [sample.path.name for sample in dataset.samples] == ["good"]
    said = reasons(dataset)
    assert said.pop("cut").startswith("unreadable: ")
    assert said == {
        "good": "stands twice in labels.csv; its first line counts",
        "odd": "its label is neither fractured nor not fractured",
        "alone": "has no label in labels.csv",
        "text": "unreadable: no DICOM file",
        "missing": "stands in labels.csv, and there is no such file",
    }
    (tmp_path / "labels.csv").write_text("file,label\ngood,1\n")
    with pytest.raises(ValueError, match="columns"):
        open_dataset(tmp_path)
