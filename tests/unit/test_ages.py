"""The patient's age: to the day where dates tell it, the lower one where two contradict, and none from garbage."""

from __future__ import annotations

from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.ages import OLDEST, age_in_years

days = st.dates(date(1900, 1, 1), date(2029, 12, 31))


def written(day: date) -> str:
    return day.strftime("%Y%m%d")


@given(st.integers(0, 999), st.sampled_from(["D", "W", "M", "Y"]))
def test_every_age_string_of_the_standard_is_read_in_its_unit(number: int, unit: str) -> None:
    years = number / {"D": 365.2425, "W": 52.1775, "M": 12, "Y": 1}[unit]
    age = age_in_years(f"{number:03}{unit}", "", [])
    assert age == (pytest.approx(years) if years <= OLDEST else None)


@pytest.mark.parametrize(("text", "expected"), [("18Y", 18), ("045y", 45), (" 018Y ", 18), ("216M", 18)])
def test_an_age_with_fewer_digits_or_blanks_is_read_too(text: str, expected: float) -> None:
    assert age_in_years(text, "", []) == expected


@pytest.mark.parametrize("text", ["", "018", "Y", "-18Y", "18.5Y", "0018Y", "adult", "18Y\\19Y", "١٨Y", "200Y"])
def test_what_is_no_age_says_nothing(text: str) -> None:
    assert age_in_years(text, "", []) is None


@given(st.text(max_size=12), st.text(max_size=12), st.lists(st.text(max_size=12), max_size=3))
def test_no_garbage_is_an_error_and_an_age_is_always_one_that_people_reach(
    stated: str, birth: str, dates: list[str]
) -> None:
    age = age_in_years(stated, birth, dates)
    assert age is None or 0 <= age <= OLDEST


@given(days, st.integers(1, 100))
def test_a_patient_is_of_age_on_the_birthday_and_not_a_day_before(birth: date, years: int) -> None:
    try:
        birthday = birth.replace(year=birth.year + years)
    except ValueError:
        birthday = date(birth.year + years, 3, 1)
    assert age_in_years("", written(birth), [written(birthday)]) == years
    before = age_in_years("", written(birth), [written(birthday - timedelta(days=1))])
    assert before is not None
    assert years - 1 < before < years


@given(days, days)
def test_a_day_later_nobody_is_younger(birth: date, day: date) -> None:
    age = age_in_years("", written(birth), [written(day)])
    later = age_in_years("", written(birth), [written(day + timedelta(days=1))])
    if age is not None and later is not None:
        assert age < later
    if day < birth:
        assert age is None


def test_the_first_date_that_does_not_lie_before_the_birth_counts() -> None:
    assert age_in_years("", "20000101", ["", "19700101", "20200101", "20300101"]) == 20
    assert age_in_years("", "20000101", ["", "19700101"]) is None
    assert age_in_years("", "", ["20200101"]) is None


@pytest.mark.parametrize(
    ("stated", "counted_from", "expected"),
    [
        ("018Y", "20020701", 17.5),  # rounded up by whoever wrote it
        ("017Y", "20020101", 18),  # written before the birthday
        ("040Y", "20100101", 10),
        ("010Y", "19800101", 10),
        ("", "19800101", 40),
        ("040Y", "", 40),
        ("040Y", "18500101", 40),  # nobody is 170
        ("999Y", "19800101", 40),
    ],
)
def test_the_dates_are_taken_and_the_lower_age_where_they_contradict_what_is_stated(
    stated: str, counted_from: str, expected: float
) -> None:
    assert age_in_years(stated, counted_from, ["20200101"]) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("stated", ["000Y", "000D", "000M", "0Y"])
@pytest.mark.parametrize(
    ("birth", "expected"), [("19800101", 40), ("20180101", 2), ("20190701", 0.5), ("20200101", 0), ("", 0)]
)
def test_a_stated_age_of_nothing_is_a_filler_wherever_dates_tell_the_age(
    stated: str, birth: str, expected: float
) -> None:
    assert age_in_years(stated, birth, ["20200101"]) == pytest.approx(expected, abs=0.01)
