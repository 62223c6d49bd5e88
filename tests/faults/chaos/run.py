"""One run: everything is sent while things break; then everything is back, drains, and is judged."""

from __future__ import annotations

import time
from collections import Counter

from sqlalchemy.exc import SQLAlchemyError

from tests.faults.chaos.faults import KINDS, Moment
from tests.faults.chaos.site import Site
from tests.faults.chaos.verify import half_received, orphans, problems, tidied, unsettled

SENDING_SECONDS = 400.0
"""Most that sending may take, everything that breaks included."""
SETTLING_SECONDS = 300.0
"""Most that may pass from the last instance until all is read, reported and delivered."""
IMPATIENT_SECONDS = 20.0
"""When nothing moves for so long, the next moment has come."""


def broken_while_sending(site: Site, moments: list[Moment]) -> None:
    """Send everything while things break at their moments; return when all is sent and everything runs again."""
    until = time.monotonic() + SENDING_SECONDS
    for sender in site.senders:
        sender.start()
    ahead = list(moments)
    reached, since = -1.0, time.monotonic()
    while ahead or not site.calm or any(sender.is_alive() for sender in site.senders):
        site.look_after()
        progress, now = site.progress(), time.monotonic()
        if progress > reached:
            reached, since = progress, now
        if ahead and (ahead[0].progress <= progress or now > since + IMPATIENT_SECONDS):
            moment = ahead.pop(0)
            site.later(moment.delay, lambda moment=moment: _break(site, moment))  # type: ignore[misc]
            since = now
        assert now < until, f"not sent within {SENDING_SECONDS:g} s; left: {[str(moment) for moment in ahead]}"
        time.sleep(0.05)


def settled(site: Site) -> None:
    """Wait until all that was sent is read, reported and delivered."""
    until = time.monotonic() + SETTLING_SECONDS
    while True:
        site.look_after()
        waiting = _waiting(site)
        if not waiting:
            return
        assert time.monotonic() < until, f"not settled within {SETTLING_SECONDS:g} s: {dict(waiting)}"
        time.sleep(0.2)


def judged(site: Site) -> list[str]:
    """Return what is wrong. Ends with a listener that starts, and a spool that is tidied, as if an hour had passed."""
    found = problems(site)
    left, lost = half_received(site), orphans(site)
    site.say(f"half received: {len(left)}; files without a row: {len(lost)}; answers: {_answers(site)}")
    found += tidied(site, [*left, *lost])
    site.parts["listener"].kill()
    site.parts["listener"].start()
    until = time.monotonic() + 60
    while half_received(site) and time.monotonic() < until:
        time.sleep(0.1)
    found += [f"half received, and old: {path.name}" for path in half_received(site)]
    done = site.run("reconcile", "--missing", "--files")
    return found + ([f"osteon reconcile says: {done.stdout}{done.stderr}"] if done.returncode else [])


def _break(site: Site, moment: Moment) -> None:
    site.say(f"{moment}; reached {site.progress():.2f}")
    for kind in moment.kinds:
        site.say(f"    {KINDS[kind](site, site.chance)}")


def _waiting(site: Site) -> Counter[str]:
    try:
        with site.database.read() as session:
            return unsettled(session)
    except SQLAlchemyError as error:
        return Counter({type(error).__name__: 1})


def _answers(site: Site) -> dict[str, int]:
    statuses = sum((sender.statuses for sender in site.senders), Counter[int]())
    return {f"{status:04X}": count for status, count in statuses.items()}
