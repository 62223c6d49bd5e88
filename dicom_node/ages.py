"""How old the patient was, from what a header says about it; garbage says nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import date

OLDEST = 130.0
"""Years; an age above is a mistake, such as a birth date of 18500101 that stands for "unknown"."""

# Age String (PS3.5, 6.2), and its forms with fewer digits or blanks that scanners send. Without its unit it is no age.
_AGE = re.compile(r"\s*([0-9]{1,3})\s*([DWMY])\s*", re.ASCII | re.IGNORECASE)
_DAY = re.compile("[0-9]{8}")
_PER_YEAR = {"D": 365.2425, "W": 365.2425 / 7, "M": 12.0, "Y": 1.0}


def age_in_years(stated: str, birth_date: str, dates: Iterable[str]) -> float | None:
    """Return the patient's age, or None where nothing usable tells it.

    Where both are there, the dates are taken, which tell it to the day; but where they differ from the stated age by
    more than a year, one of them is wrong and nobody knows which, and the lower one is kept: to take an adult for a
    child costs one reading, to take a child for an adult may cost a wrong one. A stated 0 is no such contradiction:
    scanners write "000Y" or "000D" where nobody entered an age, so that the dates, where there are any, go before it.

    Parameters
    ----------
    stated
        Patient's Age (0010,1010), such as "018Y", "030W"; rounded by whoever wrote it.
    birth_date
        YYYYMMDD, or "".
    dates
        When the image may have been made, YYYYMMDD or "", the best first; a date before the birth is passed over.
    """
    told, counted = _stated(stated), _counted(birth_date, dates)
    if told is None or counted is None:
        return told if counted is None else counted
    if told == 0:
        return counted
    return counted if abs(told - counted) <= 1 else min(told, counted)


def _stated(text: str) -> float | None:
    age = _AGE.fullmatch(text)
    return None if age is None else _plausible(int(age[1]) / _PER_YEAR[age[2].upper()])


def _counted(birth_date: str, dates: Iterable[str]) -> float | None:
    birth = _day(birth_date)
    days = [day for day in map(_day, dates) if day is not None and birth is not None and day >= birth]
    return _plausible(_between(birth, days[0])) if birth is not None and days else None


def _between(birth: date, day: date) -> float:
    """Count in birthdays, not in days: on the 18th birthday the age is 18 and not 17.998."""
    completed = day.year - birth.year - ((day.month, day.day) < (birth.month, birth.day))
    try:
        birthday = birth.replace(year=birth.year + completed)
    except ValueError:  # born on 29 February: one day older on 1 March
        birthday = date(birth.year + completed, 3, 1)
    return completed + (day - birthday).days / 366


def _day(text: str) -> date | None:
    if not _DAY.fullmatch(text):
        return None
    try:
        # What `strptime` does, in a tenth of its time; a listener counts four days for each instance.
        return date(int(text[:4]), int(text[4:6]), int(text[6:]))
    except ValueError:
        return None


def _plausible(age: float) -> float | None:
    return age if age <= OLDEST else None
