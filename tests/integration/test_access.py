"""Who gets into the console, for how long, and what they may do there."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select

from console import access
from console.access import AccountError, Action, Denied, Person, Role
from models import clock
from models.database import Database
from models.settings import Settings, WebSettings, environment_of
from models.tables import AuditEvent, User, WebSession
from models.upgrade import upgrade
from tests.servers import given

PASSWORD = "correct horse battery"
WEB = WebSettings(session_timeout=30, longest_session=120)
# What each role may do, written down once more by hand.
EVERYBODY = {
    Action.VIEW_WORKLIST,
    Action.VIEW_STUDY,
    Action.VIEW_OPERATIONS,
    Action.VIEW_DRIFT,
    Action.VIEW_MODELS,
}
OF_THE_TRAIL = {Action.VIEW_AUDIT, Action.VERIFY_AUDIT, Action.EXPORT_AUDIT, Action.REPLAY}
MAY = {
    Role.VIEWER: EVERYBODY | {Action.TRY_IMAGE},
    Role.REVIEWER: EVERYBODY | {Action.TRY_IMAGE, Action.REVIEW},
    Role.ADMINISTRATOR: EVERYBODY | OF_THE_TRAIL | {Action.TRY_IMAGE, Action.RETRY, Action.ECHO, Action.CHANGE_MODEL},
    Role.AUDITOR: EVERYBODY | OF_THE_TRAIL,
}


@pytest.fixture
def anna(database: Database) -> str:
    access.add_user(database, "Anna", PASSWORD, [Role.VIEWER], by="login:root")
    return "anna"


@pytest.fixture
def later() -> Iterator[Callable[[timedelta], None]]:
    """Let time pass."""
    with clock.frozen(clock.now()):
        yield clock.advance


def events(database: Database) -> list[tuple[str, str, dict[str, object]]]:
    with database.read() as session:
        rows = session.scalars(select(AuditEvent).order_by(AuditEvent.id)).all()
    return [(row.actor, row.action, row.details) for row in rows]


def signed_in(database: Database, name: str = "anna") -> str:
    key = access.sign_in(database, name, PASSWORD)
    assert key is not None
    return key


def test_each_role_may_do_what_it_is_for_and_nothing_else(database: Database) -> None:
    refused = []
    for role, action in itertools.product(Role, Action):
        person = Person("anna", frozenset({role}), 1)
        if action in MAY[role]:
            access.authorise(database, person, action)
            continue
        with pytest.raises(Denied, match="This needs the role"):
            access.authorise(database, person, action, subject="study", subject_id=7)
        refused.append(("person:anna", "access.denied", {"wanted": action.value}))
    assert len(refused) == len(Role) * len(Action) - sum(map(len, MAY.values()))
    assert events(database) == refused


def test_somebody_without_a_role_may_do_nothing(database: Database) -> None:
    for action in Action:
        with pytest.raises(Denied):
            access.authorise(database, Person("anna", frozenset(), 1), action)


def test_a_person_who_signs_in_is_known_by_the_key_alone(database: Database, anna: str) -> None:
    key = signed_in(database, " ANNA ")
    assert access.person_of(database, key, WEB) == Person(anna, frozenset({Role.VIEWER}), 1)
    assert access.person_of(database, key + "x", WEB) is None
    assert [(actor, action) for actor, action, _ in events(database)][1:] == [("person:anna", "signed.in")]


@pytest.mark.usefixtures("anna")
def test_neither_password_nor_key_is_on_record(database: Database) -> None:
    key = signed_in(database)
    with database.read() as session:
        user, held = session.scalars(select(User)).one(), session.scalars(select(WebSession)).one()
        assert user.password_hash.startswith("$argon2id$")
        written = json.dumps([user.password_hash, held.key_sha256, events(database)], default=str)
    assert PASSWORD not in written
    assert key not in written


@pytest.mark.parametrize(
    ("name", "password", "why"),
    [("anna", "wrong password", "password"), ("nobody", PASSWORD, "unknown"), ("anna", "x" * 300, "password")],
)
def test_a_wrong_name_or_password_lets_nobody_in_and_is_audited(
    database: Database, anna: str, name: str, password: str, why: str
) -> None:
    assert access.sign_in(database, name, password) is None
    actor, action, details = events(database)[-1]
    assert (action, details) == ("sign_in.failed", {"way": "password", "why": why})
    # People type their password where the name belongs.
    assert (actor == "person:anna") == (name == anna)
    assert "nobody" not in json.dumps(events(database))


def test_an_account_is_locked_after_some_wrong_passwords_and_open_again_later(
    database: Database, anna: str, later: Callable[[timedelta], None]
) -> None:
    for _ in range(access.FREE_FAILURES + 1):
        assert access.sign_in(database, anna, "wrong password") is None
    assert access.sign_in(database, anna, PASSWORD) is None
    assert events(database)[-1][2] == {"way": "password", "why": "locked"}
    later(timedelta(seconds=access.FIRST_LOCK_SECONDS + 1))
    signed_in(database)
    with database.read() as session:
        assert session.scalars(select(User.failures)).one() == 0


def test_each_further_wrong_password_locks_for_longer_but_never_for_good(
    database: Database, anna: str, later: Callable[[timedelta], None]
) -> None:
    locks = []
    for _ in range(12):
        access.sign_in(database, anna, "wrong password")
        with database.read() as session:
            until = session.scalars(select(User.locked_until)).one()
        locks.append(0.0 if until is None else (until - clock.now()).total_seconds())
        later(timedelta(seconds=access.LONGEST_LOCK_SECONDS + 1))
    assert [round(seconds / 30) for seconds in locks] == [0, 0, 0, 0, 1, 2, 4, 8, 16, 30, 30, 30]


def test_many_tries_at_once_are_no_more_than_one_after_another(database: Database, anna: str) -> None:
    with ThreadPoolExecutor(12) as pool:
        assert not any(pool.map(lambda _: access.sign_in(database, anna, "wrong password"), range(12)))
    why = [details["why"] for _, action, details in events(database) if action == "sign_in.failed"]
    assert why.count("password") == access.FREE_FAILURES + 1


@pytest.mark.usefixtures("anna")
def test_a_session_ends_when_nothing_was_done_for_too_long(
    database: Database, later: Callable[[timedelta], None]
) -> None:
    key = signed_in(database)
    for _ in range(3):
        later(timedelta(minutes=20))
        assert access.person_of(database, key, WEB) is not None
    later(timedelta(minutes=29))
    # What a page asks by itself keeps no session alive.
    assert access.person_of(database, key, WEB, touch=False) is not None
    later(timedelta(minutes=2))
    assert access.person_of(database, key, WEB) is None


@pytest.mark.usefixtures("anna")
def test_a_session_ends_after_its_longest_time_whatever_was_done(
    database: Database, later: Callable[[timedelta], None]
) -> None:
    key = signed_in(database)
    for _ in range(5):
        later(timedelta(minutes=20))
        assert access.person_of(database, key, WEB) is not None
    later(timedelta(minutes=21))
    assert access.person_of(database, key, WEB) is None


@pytest.mark.usefixtures("anna")
def test_signing_out_ends_the_session(database: Database) -> None:
    key = signed_in(database)
    person = access.person_of(database, key, WEB)
    assert person is not None
    access.sign_out(database, person)
    assert access.person_of(database, key, WEB) is None
    assert events(database)[-1][:2] == ("person:anna", "signed.out")


def test_a_disabled_account_lets_nobody_in_and_puts_out_who_is_in(database: Database, anna: str) -> None:
    key = signed_in(database)
    access.disable_user(database, anna, by="login:root")
    assert access.person_of(database, key, WEB) is None
    assert access.sign_in(database, anna, PASSWORD) is None
    assert events(database)[-1][2] == {"way": "password", "why": "disabled"}


def test_a_new_password_puts_out_who_is_in_and_opens_the_account(database: Database, anna: str) -> None:
    key = signed_in(database)
    access.disable_user(database, anna, by="login:root")
    access.set_password(database, anna, "another password", by="login:root")
    assert access.person_of(database, key, WEB) is None
    assert access.sign_in(database, anna, PASSWORD) is None
    assert access.sign_in(database, anna, "another password") is not None


def test_other_roles_count_at_once(database: Database, anna: str) -> None:
    key = signed_in(database)
    access.set_roles(database, anna, [Role.AUDITOR, Role.REVIEWER], by="login:root")
    person = access.person_of(database, key, WEB)
    assert person is not None
    assert person.roles == {Role.AUDITOR, Role.REVIEWER}


def test_nobody_has_to_sign_in_only_on_this_machine_and_while_no_account_was_ever_made(database: Database) -> None:
    assert access.may_open_without_sign_in(database, WebSettings(host="127.0.0.1"))
    assert not access.may_open_without_sign_in(database, WebSettings(host="0.0.0.0"))
    access.add_user(database, "anna", PASSWORD, [Role.VIEWER], by="login:root")
    assert not access.may_open_without_sign_in(database, WebSettings(host="127.0.0.1"))
    access.disable_user(database, "anna", by="login:root")
    assert not access.may_open_without_sign_in(database, WebSettings(host="127.0.0.1"))


@pytest.mark.parametrize(
    ("name", "password", "roles", "why"),
    [
        ("anna", "short", [Role.VIEWER], "a password has 12 to 256 characters"),
        ("an na", PASSWORD, [Role.VIEWER], "a name has 1 to 64 printable characters"),
        ("anna", PASSWORD, [], "an account needs a role"),
        ("bert", PASSWORD, [Role.VIEWER], "there is an account bert already"),
    ],
)
def test_an_account_that_cannot_be_is_refused_in_words(
    database: Database, name: str, password: str, roles: list[Role], why: str
) -> None:
    access.add_user(database, "bert", PASSWORD, [Role.VIEWER], by="login:root")
    with pytest.raises(AccountError, match=why):
        access.add_user(database, name, password, roles, by="login:root")


def osteon(settings: Settings, *arguments: str, typed: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "console", *arguments],
        env={"PATH": "/usr/bin:/bin", **environment_of(settings)},
        input=typed,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_accounts_are_made_listed_changed_and_disabled_from_the_command_line(tmp_path: Path) -> None:
    settings = given(tmp_path / "node")
    upgrade(settings)
    database = Database.of(settings)
    made = osteon(settings, "users", "add", "anna", "--role", "viewer", "--role", "auditor", typed=PASSWORD + "\n")
    assert (made.returncode, made.stdout) == (0, "Account anna made.\n"), made.stderr
    key = signed_in(database)
    assert osteon(settings, "users", "role", "anna", "--role", "reviewer").returncode == 0
    assert osteon(settings, "users", "password", "anna", typed="another password\n").returncode == 0
    assert access.person_of(database, key, WEB) is None
    assert osteon(settings, "users", "disable", "anna").returncode == 0
    (listed,) = json.loads(osteon(settings, "users", "list", "--json").stdout)
    assert (listed["name"], listed["roles"], listed["disabled"]) == ("anna", ["reviewer"], True)
    missing = osteon(settings, "users", "disable", "bert")
    assert (missing.returncode, missing.stderr) == (1, "Not done: there is no account bert.\n")
    actions = [action for _, action, _ in events(database)]
    assert actions == ["user.added", "signed.in", "user.roles", "user.password", "user.disabled"]
    database.close()


def test_the_console_refuses_another_address_while_nobody_can_sign_in(tmp_path: Path) -> None:
    settings = given(tmp_path / "node")
    upgrade(settings)
    database = Database.of(settings)
    open_to_all = settings.model_copy(update={"web": WebSettings(host="0.0.0.0")})
    refused = osteon(open_to_all, "web")
    assert refused.returncode == 1
    assert "web.host is 0.0.0.0 and nobody can sign in" in refused.stderr
    access.add_user(database, "anna", PASSWORD, [Role.VIEWER], by="login:root")
    assert access.cannot_serve(database, open_to_all) is None
    access.disable_user(database, "anna", by="login:root")
    assert access.cannot_serve(database, open_to_all) is not None
    database.close()
