"""A bundle that is released anew says what its old card said, and more."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import litert
from training import evaluate, restate
from training.evaluate import Outcomes
from worker.bundle import Bundle, Metrics, OperatingPoints

from .test_evaluate import measured, outcomes

POINTS = OperatingPoints(absent_below=0.35, present_from=0.5)


def _measuring(of: Outcomes, metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the test split be what `of` says."""

    def measure(bundle: Path, _: Path, **__: object) -> evaluate.Evaluation:
        code = Bundle.load(bundle).card.findings[0].code
        found = metrics.model_copy(update={"score_distribution": evaluate.score_distribution(of, POINTS, code)})
        return evaluate.Evaluation(found, of, (), POINTS)

    monkeypatch.setattr(evaluate, "measure", measure)


def test_model_and_figures_stay_and_the_scores_come_with_the_count_of_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = outcomes()
    before = measured(of)
    old = litert.predictor(tmp_path / "old", metrics=before.model_dump()).bundle
    _measuring(of, before, monkeypatch)
    restate.restate(old.path, tmp_path / "test-model-2", tmp_path, test_reads=6)
    new = Bundle.load(tmp_path / "test-model-2")
    assert (new.card.name, new.card.version, new.card.metrics.test_reads) == ("test-model", "2", 6)
    assert new.model == old.model
    assert new.card.metrics.values == old.card.metrics.values
    assert old.card.metrics.score_distribution is None
    assert new.card.metrics.score_distribution is not None
    assert new.card.findings == old.card.findings


def test_nothing_is_written_where_a_figure_comes_out_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = measured(outcomes())
    old = litert.predictor(tmp_path / "old", metrics=before.model_dump()).bundle
    other = outcomes(seed=12)
    _measuring(other, measured(other), monkeypatch)
    with pytest.raises(ValueError, match="auc"):
        restate.restate(old.path, tmp_path / "test-model-2", tmp_path, test_reads=6)
    assert not (tmp_path / "test-model-2").exists()
