"""The page that shows drift: rates and scores as plots and as tables, and in words what stands out."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta

import pytest

pytest.importorskip("streamlit")

from streamlit.testing.v1 import AppTest

from console.access import ALLOWED, Action, Role
from console.web import drift as page_of_drift
from console.web import plots, state
from models.database import Database
from models.settings import Settings
from models.upgrade import upgrade
from tests.bundles import shipped_card
from tests.servers import given
from worker.activation import follow_settings
from worker.bundle import Bundle, default_bundle_path
from worker.drift import Counts, Drift, baseline_of
from worker.shift import LEAST

PAGE = """
from console.web import drift
drift.page()
"""
WEEKS = tuple(date(2026, 3, 23) - timedelta(weeks=back) for back in reversed(range(26)))


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    made = given(tmp_path_factory.mktemp("web") / "node")
    upgrade(made)
    return made


@pytest.fixture
def database(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    opened = Database.of(settings)
    monkeypatch.setattr(state, "settings", lambda: settings)
    monkeypatch.setattr(state, "database", lambda: opened)
    page_of_drift._counted.clear()
    yield opened
    opened.close()


def found(*, baseline: bool = True) -> Drift:
    """A scanner as ever, and one that calls every second image a fracture."""
    card = shipped_card()
    compared = baseline_of(card.metrics, card.findings[0].code.value)
    assert compared is not None
    assert compared.spread is not None
    usual = tuple(round(100 * share) for share in compared.spread.mixed(0.1))
    as_ever = Counts(12, sum(usual) - 12 - 20, 20, 1, usual)
    other = Counts(50, 50, 0, 0, (0,) * 9 + (50,) + (0,) * 4 + (50,) + (0,) * 3)
    return Drift(
        model="osteon-reader 3",
        finding="Fracture of bone",
        baseline=compared if baseline else None,
        edges=compared.edges,
        absent_below=0.03,
        present_from=0.34,
        weeks=WEEKS,
        by_scanner={"<b>X1, ROOM1": (as_ever,) * 26, "X2, ROOM2": (other,) * 26},
        counted_at=datetime(2026, 3, 25, 12, 34, 56, tzinfo=UTC),
    )


def run() -> AppTest:
    return AppTest.from_string(PAGE, default_timeout=30).run()


def shown(page: AppTest) -> str:
    assert not page.exception
    return "\n".join(element.proto.body for element in page.get("html"))


def drawings(text: str) -> list[str]:
    return [base64.b64decode(one).decode() for one in re.findall(r"data:image/svg\+xml;base64,([\w+/=]+)", text)]


@pytest.mark.usefixtures("database")
def test_before_anything_was_read_the_page_says_so() -> None:
    assert "No model has read anything here yet." in shown(run())


def test_what_stands_out_is_said_of_the_scanner_in_words_plots_and_tables(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow_settings(database, Bundle.load(default_bundle_path()), "worker")
    monkeypatch.setattr(page_of_drift, "drift", lambda *_: [found()])
    page = run()
    text = shown(page)
    assert "◆ X2, ROOM2: Called fracture: 50.0 %" in text
    assert "above the release&#x27;s band" in text
    assert "◆ &lt;b&gt;X1" not in text
    assert "<b>" not in text
    assert "allows for 2 to 20 % of images with one (test set 17 %)" in text
    assert "Counted at 12:34:56 UTC" in text
    assert len(drawings(text)) == 4
    assert "2026-W13 from 2026-03-23" in text
    assert "95 to 100 %" in text
    page.selectbox[0].select("<b>X1, ROOM1").run()
    assert "Nothing stands out in this period." in shown(page)
    page.selectbox[1].select(4).run()
    assert "2026-W09 from" not in shown(page)


def test_without_a_baseline_the_page_says_that_nothing_is_compared(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow_settings(database, Bundle.load(default_bundle_path()), "worker")
    monkeypatch.setattr(page_of_drift, "drift", lambda *_: [found(baseline=False)])
    text = shown(run())
    assert "The card of this model has no figures to compare with." in text
    assert "◆" not in text


def test_figures_are_counted_once_in_a_while_and_not_with_every_look(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow_settings(database, Bundle.load(default_bundle_path()), "worker")
    counted = []
    monkeypatch.setattr(page_of_drift, "drift", lambda *_: counted.append(1) or [found()])
    page = run()
    page.selectbox[1].select(26).run()
    run()
    assert counted == [1]


def test_a_record_without_images_is_drawn_too(database: Database) -> None:
    follow_settings(database, Bundle.load(default_bundle_path()), "worker")
    text = shown(run())
    assert f"Fewer than {LEAST} images" in text
    assert len(drawings(text)) == 4


def test_every_role_may_look() -> None:
    assert ALLOWED[Action.VIEW_DRIFT] == frozenset(Role)


def test_a_week_outside_the_band_has_another_shape_and_not_only_another_colour() -> None:
    within, outside, few = (
        plots.Point("03-02", 0.1, 0.05, 0.2),
        plots.Point("03-09", 0.6, 0.5, 0.7, flagged=True),
        plots.Point("03-16", 1.0, 0.2, 1.0, faint=True),
    )
    (drawn,) = drawings(plots.over_time("T", [within, outside, few], (0.1, 0.05, 0.2), "said").html)
    assert drawn.count("<circle") == 2
    assert drawn.count("l6 6l-6 6l-6 -6z") == 1
    assert 'fill="none" stroke="#a9b4bf"/>' in drawn
