"""The console's own HTML: whatever is put into it is shown, and nothing of it is obeyed."""

from __future__ import annotations

import re

import pytest

from console.web import look
from console.web.worklist import readable_date, readable_name

HOSTILE = '<img src=x onerror="alert(1)"> & \'"'


@pytest.mark.parametrize(
    "made",
    [
        look.paragraph(HOSTILE),
        look.span(HOSTILE),
        look.heading(HOSTILE),
        look.items([HOSTILE]),
        look.facts([(HOSTILE, HOSTILE)]),
        look.link(HOSTILE, HOSTILE),
        look.table(HOSTILE, [HOSTILE], [[HOSTILE]]),
        look.films(b"", None, HOSTILE),
    ],
)
def test_what_comes_from_elsewhere_is_text_and_never_html(made: look.Safe) -> None:
    assert "<img src=x" not in made.html
    assert 'onerror="' not in made.html
    assert "&lt;img" in made.html


def test_a_decision_is_a_shape_and_a_word_and_each_has_its_own() -> None:
    said = [re.sub(r"<[^>]+>", "", look.decision(name).html) for name in look.DECISIONS]
    assert len(set(said)) == len({text[0] for text in said}) == 4
    assert [text.split(" ", 1)[1].strip() for text in said] == [
        "Fracture",
        "No fracture",
        "Undetermined",
        "Not analysed",
    ]


def test_a_decision_that_nobody_made_is_none() -> None:
    assert "fracture" not in look.decision(None).html.lower()
    assert "fracture" not in look.decision("<b>").html.lower()


@pytest.mark.parametrize("probability", [0.0, 0.02, 0.2, 0.34, 1.0])
def test_a_scale_shows_the_probability_in_its_place_and_says_it_in_words(probability: float) -> None:
    made = look.scale(probability, 0.033, 0.339).html
    assert f'class="needle" style="left:{100 * probability:.2f}%"' in made
    assert f"Calibrated probability {probability:.1%}. No fracture below 3.3%, fracture from 33.9%" in made
    widths = [float(width) for width in re.findall(r"width:([\d.]+)%", made)]
    assert sum(widths) == pytest.approx(100, abs=0.02)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("Muster^Anna^Maria^Dr.", "Muster, Anna Maria"),
        ("Yamada^Tarou=山田^太郎", "Yamada, Tarou"),
        ("=山田^太郎", "山田, 太郎"),
        ("Muster", "Muster"),
        ("^^^", ""),
        ("", ""),
    ],
)
def test_a_person_name_is_written_as_people_write_it(name: str, read: str) -> None:
    assert readable_name(name) == read


@pytest.mark.parametrize(("date", "read"), [("20260131", "2026-01-31"), ("2026", "2026"), ("", "")])
def test_a_date_is_written_with_dashes(date: str, read: str) -> None:
    assert readable_date(date) == read
