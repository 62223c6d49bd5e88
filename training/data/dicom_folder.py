"""DICOM files with a label file: `labels.csv` in the folder, a line for each image.

| column | meaning |
|---|---|
| image | the file's path within the folder, or the image's SOP Instance UID |
| fractured | 1, true, yes or fractured; 0, false, no or not fractured |
| split | optional: train, val or test |
| group | optional: images that belong together; without it those of one patient, or else of one study |

Patients' identifiers are hashed and stand in no message.
"""

from __future__ import annotations

import hashlib
import io
import re
from pathlib import Path

import pydicom
from pydicom.errors import InvalidDicomError

from dicom_node.pixels import NotAnalysable, model_input
from training.data.dataset import Dataset, Found, Problem, assembled, digest
from training.data.folders import FRACTURED, NOT_FRACTURED, SPLITS, files
from training.data.manifests import rows
from training.data.sample import is_dicom

LABELS = "labels.csv"
_YES, _NO = FRACTURED | {"1", "true", "yes"}, NOT_FRACTURED | {"0", "false", "no"}
_TRIED = (64, 64)
"""What every image is prepared as, to see that it can be."""


def read_dicom_folder(folder: Path) -> Dataset:
    """Read the DICOM files below `folder` that `labels.csv` labels. Raises ValueError without the columns it needs."""
    lines = rows(folder / LABELS)
    if not lines or not {"image", "fractured"} <= lines[0].keys():
        raise ValueError(f"{LABELS} needs the columns image and fractured, and a line for each image.")
    problems: list[Problem] = []
    wanted: dict[str, dict[str, str]] = {}
    for line in lines:
        if line["image"] in wanted:
            problems.append(Problem(line["image"], f"stands twice in {LABELS}; its first line counts"))
        wanted.setdefault(line["image"], line)
    found: list[Found] = []
    for path in files(folder):
        name = path.relative_to(folder).as_posix()
        if name == LABELS:
            continue
        content = path.read_bytes()
        dataset = _opened(content)
        uid = "" if dataset is None else str(dataset.get("SOPInstanceUID", ""))
        # A file that is no DICOM object may be labelled by its path: that it cannot be read is then what is wrong.
        given = wanted.pop(name, None) or (wanted.pop(uid, None) if uid else None)
        if given is None:
            problems.append(Problem(name, f"has no label in {LABELS}"))
            continue
        one = _found(name, path, content, dataset, given)
        if isinstance(one, Problem):
            problems.append(one)
        else:
            found.append(one)
    problems += [Problem(image, f"stands in {LABELS}, and there is no such file") for image in wanted]
    return assembled(folder.name, found, problems)


def _found(
    name: str, path: Path, content: bytes, dataset: pydicom.Dataset | None, line: dict[str, str]
) -> Found | Problem:
    label = re.sub(r"[^a-z0-9]", "", line["fractured"].lower())
    split = re.sub(r"[^a-z]", "", (line.get("split") or "").lower())
    if label not in _YES | _NO:
        return Problem(name, "its label is neither fractured nor not fractured")
    if split and split not in SPLITS:
        return Problem(name, "its split is neither train, val nor test")
    if dataset is None:
        return Problem(name, "unreadable: no DICOM file")
    try:
        model_input(dataset, _TRIED)
    except NotAnalysable as reason:
        return Problem(name, f"unreadable: {reason}")
    said = line.get("group") or ""
    whose = str(dataset.get("PatientID", "") or dataset.get("StudyInstanceUID", "") or name)
    return Found(
        name,
        path,
        hashlib.sha256(content).hexdigest(),
        label in _YES,
        group=said or digest(whose),
        split=SPLITS.get(split),
    )


def _opened(content: bytes) -> pydicom.Dataset | None:
    if not is_dicom(content):
        return None
    try:
        return pydicom.dcmread(io.BytesIO(content))
    except (InvalidDicomError, OSError, ValueError, EOFError, KeyError, TypeError, AttributeError):
        return None
