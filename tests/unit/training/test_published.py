"""The published CNN is fitted as published: its epoch is chosen on validation, and a stop costs nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.unit.training import made
from training import entries

keras = pytest.importorskip("keras")

from training import published  # noqa: E402 (it needs Keras)

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SETTINGS = published.Settings(epochs=3, batch=4, rows=32, columns=32)


@pytest.fixture
def parts(tmp_path: Path) -> dict[str, list[entries.Entry]]:
    found = entries.kaggle(made.kaggle(tmp_path / "data"))
    return {part: entries.of_part(found, part) for part in (entries.TRAIN, entries.VALIDATION, entries.TEST)}


def fit(parts: dict[str, list[entries.Entry]], run: Path, settings: published.Settings = SETTINGS) -> None:
    published.fit(settings, parts["train"], parts["validation"], run)


def test_a_fit_that_was_stopped_after_any_epoch_ends_as_if_it_had_not_been(
    parts: dict[str, list[entries.Entry]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(parts, tmp_path / "whole")
    epoch = published._Fitting.epoch

    def stopped(self: published._Fitting, *given: entries.Pictures) -> None:
        if len(self.history) == 2:
            raise KeyboardInterrupt
        epoch(self, *given)

    monkeypatch.setattr(published._Fitting, "epoch", stopped)
    with pytest.raises(KeyboardInterrupt):
        fit(parts, tmp_path / "stopped")
    monkeypatch.undo()
    assert not (tmp_path / "stopped" / published.WEIGHTS).exists()
    fit(parts, tmp_path / "stopped")
    one, other = (published.history(tmp_path / name) for name in ("whole", "stopped"))
    assert len(one) == 3
    for row, same in zip(one, other, strict=True):
        assert same == pytest.approx(row, abs=1e-5)
    weights = [published.load(tmp_path / name).get_weights() for name in ("whole", "stopped")]
    for values, same_values in zip(*weights, strict=True):
        np.testing.assert_allclose(same_values, values, atol=1e-5)
    assert not (tmp_path / "stopped" / published.CHECKPOINT).exists()


def test_the_epoch_with_the_best_validation_accuracy_is_kept() -> None:
    rows = [
        {"epoch": 1.0, "validation_accuracy": 0.8, "validation_loss": 0.3},
        {"epoch": 2.0, "validation_accuracy": 0.9, "validation_loss": 0.5},
        {"epoch": 3.0, "validation_accuracy": 0.9, "validation_loss": 0.4},
        {"epoch": 4.0, "validation_accuracy": 0.85, "validation_loss": 0.1},
    ]
    assert published.best(rows)["epoch"] == 3


def test_the_weights_of_the_epoch_that_is_kept_are_the_runs(
    parts: dict[str, list[entries.Entry]], tmp_path: Path
) -> None:
    fit(parts, tmp_path / "run")
    kept = published.best(published.history(tmp_path / "run"))
    network = published.load(tmp_path / "run")
    shown = entries.decoded(parts["validation"], SETTINGS.size)
    said = published.logits(network, shown)
    assert published.losses(said, shown.labels).mean() == pytest.approx(kept["validation_loss"], abs=1e-4)
    assert ((said > 0) == shown.labels).mean() == kept["validation_accuracy"]


def test_what_is_said_of_an_entry_is_said_of_every_repeat_of_it(parts: dict[str, list[entries.Entry]]) -> None:
    network = published.published_cnn(SETTINGS.size, channels=3)
    twice = [*parts["test"], *parts["test"][::-1]]
    said = published.logits(network, entries.decoded(twice, SETTINGS.size), batch=3)
    assert said.shape == (16,)
    assert np.array_equal(said[:8], said[8:][::-1])


def test_losses_are_keras_s() -> None:
    logits, labels = np.array([-30.0, -1.0, 0.0, 2.0, 40.0]), np.array([0.0, 1.0, 1.0, 0.0, 1.0])
    theirs = keras.ops.binary_crossentropy(labels, logits, from_logits=True)
    np.testing.assert_allclose(published.losses(logits, labels), keras.ops.convert_to_numpy(theirs), atol=1e-6)


def test_a_run_under_other_settings_is_refused(parts: dict[str, list[entries.Entry]], tmp_path: Path) -> None:
    fit(parts, tmp_path / "run", published.Settings(epochs=1, batch=4, rows=32, columns=32))
    with pytest.raises(ValueError, match="other settings"):
        fit(parts, tmp_path / "run")
