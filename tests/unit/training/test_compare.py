"""Architectures are compared by one recipe, and measured as the file that a bundle would hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.training import made

keras = pytest.importorskip("keras")

from training import compare, fit  # noqa: E402 (they need Keras)
from training.recipe import Recipe  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

BASE = Recipe(rows=64, columns=64, epochs=1, batch=4, head_width=8, held_out=1)


def test_only_the_network_differs_and_the_published_ones_size() -> None:
    assert compare.recipe_for(BASE, "lite2") == replace(BASE, network="lite2")
    assert compare.recipe_for(BASE, "published") == replace(BASE, network="published", rows=150, columns=150)


def test_the_file_says_what_the_run_said_of_the_fold_it_did_not_learn_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if keras.backend.backend() != "tensorflow":
        pytest.skip("only TensorFlow writes LiteRT files")
    monkeypatch.setenv("OSTEON_TRAINING_CACHE", str(tmp_path / "cache"))
    root, run = made.fracatlas(tmp_path / "data", in_fold=8), tmp_path / "residual"
    fit.fit(compare.recipe_for(BASE, "residual"), root, run)
    row = compare.measured(run, root)
    figures = fit.last_figures(run)
    assert row.values["auc"] == pytest.approx(figures["held_out_auc"], abs=1e-4)
    assert row.values["pointing_inside"] == pytest.approx(figures["held_out_pointing"], abs=1e-4)
    assert set(row.values) == {"auc", "auc_without_hardware", "pointing_inside"}
    assert row.name == "residual network from scratch"
    assert row.parameters == fit.load_run(run)[1].count_params()
    assert 5 < row.megabytes < 6  # 2.8 million weights of two bytes
    assert row.milliseconds is not None
    assert row.note == "fold 1, 1 epochs, 100% of its weights fitted"
    table = compare.table([row])
    assert "64 × 64" in table
    assert "fold 1" in table


def test_a_run_that_held_nothing_out_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSTEON_TRAINING_CACHE", str(tmp_path / "cache"))
    root, run = made.fracatlas(tmp_path / "data"), tmp_path / "run"
    recipe = replace(BASE, network="published", held_out=None)
    fit.begin(recipe, run)
    fit.write(run / fit.WEIGHTS, fit.weights_of(fit.networks.build(recipe)))
    with pytest.raises(ValueError, match="held no fold out"):
        compare.measured(run, root)


def test_a_table_that_was_written_is_read_and_another_file_is_refused(tmp_path: Path) -> None:
    row = compare.ComparedArchitecture(
        name="a", input="64 × 64", parameters=3, megabytes=0.1, values={"auc": 0.5}, note=""
    )
    path = tmp_path / compare.TABLE
    path.write_text(f"[{row.model_dump_json()}]", encoding="utf-8")
    assert compare.read(path) == (row,)
    path.write_text('[{"name": "a"}]', encoding="utf-8")
    with pytest.raises(ValueError, match="parameters"):
        compare.read(path)
