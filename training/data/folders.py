"""A folder for each class, as Kaggle's data sets come: `train/fractured/1.jpg`, `train/not fractured/2.jpg`, ….

Folders above and between do not matter. Splits are optional: without them `dataset.assembled` draws some.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from training.data.dataset import Dataset, Found, Problem, assembled

FRACTURED = frozenset({"fractured", "fracture", "fractures", "withfracture", "broken", "positive"})
NOT_FRACTURED = frozenset(
    {"notfractured", "nonfractured", "unfractured", "nofracture", "withoutfracture", "notbroken", "normal", "negative"}
)
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""What folders are called, in lower case and without anything but letters."""


def read_folders(folder: Path) -> Dataset:
    """Read every file below `folder`. Raises ValueError when no folder is called as a class."""
    found: list[Found] = []
    problems: list[Problem] = []
    for path in files(folder):
        name = path.relative_to(folder).as_posix()
        label, split = _stated(path.relative_to(folder).parts[:-1])
        if label is None:
            problems.append(Problem(name, "no folder above it is called as a class"))
            continue
        content = path.read_bytes()
        fault = picture_fault(content)
        if fault is not None:
            problems.append(Problem(name, fault))
            continue
        sha256 = hashlib.sha256(content).hexdigest()
        # Copies must not be parted; who knows more of the images gives them groups of their own (training.leaks).
        found.append(Found(name, path, sha256, label, group=sha256[:16], split=split))
    if not found and not any("class" not in problem.reason for problem in problems):
        raise ValueError(f"No folder in {folder.name} is called fractured, not fractured or the like.")
    return assembled(folder.name, found, problems)


def files(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder in a fixed order, without hidden ones."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            yield path


def picture_fault(content: bytes) -> str | None:
    """Return why a picture cannot be decoded to its last pixel, or None when it can."""
    try:
        with Image.open(io.BytesIO(content)) as picture:
            picture.load()
    except UnidentifiedImageError:
        return "unreadable: no picture"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return f"unreadable: {'truncated' if 'truncated' in str(error) else type(error).__name__}"
    return None


def _stated(parts: tuple[str, ...]) -> tuple[bool | None, str | None]:
    """Return label and split by the names of folders; the innermost of each kind counts."""
    label: bool | None = None
    split: str | None = None
    for part in parts:
        word = re.sub(r"[^a-z]", "", part.lower())
        if word in FRACTURED or word in NOT_FRACTURED:
            label = word in FRACTURED
        split = SPLITS.get(word, split)
    return label, split
