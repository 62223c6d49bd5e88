"""Whom an OpenID provider lets into the console, as what, and what stays the administrator's."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

import pytest
from sqlalchemy import func, select

from console import access, provider
from console.access import AccountError, Role
from console.provider import NotLetIn
from models import clock
from models.database import Database
from models.settings import OpenIdSettings, RoleName, WebSettings
from models.tables import User, WebSession
from models.upgrade import upgrade
from tests.integration.test_access import events, osteon
from tests.servers import given

ISSUER = "https://login.example.org/realms/hospital"
GIVEN: dict[str, Any] = {
    "name": "Hospital sign-in",
    "issuer": ISSUER,
    "client_id": "osteon",
    "client_secret_file": "/run/secrets/oidc",
    "console_url": "https://osteon.example.org",
    "roles": {"radiologists": ["viewer", "reviewer"], "radiology-it": ["administrator"]},
}
PROVIDER = OpenIdSettings(**GIVEN)
WEB = WebSettings(oidc=PROVIDER)


def claims(subject: str = "248289", name: str = "Rita", roles: object = ("radiologists",), **more: object) -> Any:
    """The claims of an ID token; None leaves one out."""
    roles = list(roles) if isinstance(roles, tuple) else roles
    said = {"iss": ISSUER, "aud": "osteon", "sub": subject, "preferred_username": name, "roles": roles, **more}
    return {name: value for name, value in said.items() if value is not None}


def person(database: Database, said: Any) -> access.Person | None:
    """Who got in by these claims."""
    return access.person_of(database, provider.sign_in(database, PROVIDER, said), WEB)


def refused(database: Database, said: Any) -> tuple[str, str]:
    """Why these claims let nobody in, and as whose account that is on record."""
    with database.read() as session:
        before = session.scalar(select(func.count(WebSession.id)))
    with pytest.raises(NotLetIn) as error:
        provider.sign_in(database, PROVIDER, said)
    with database.read() as session:
        assert session.scalar(select(func.count(WebSession.id))) == before
    actor, action, details = events(database)[-1]
    assert (action, details) == ("sign_in.failed", {"way": "openid", "why": error.value.why})
    return error.value.why, actor.partition("@")[0]


def test_the_settings_know_the_roles_of_the_console() -> None:
    assert set(get_args(RoleName)) == {role.value for role in Role}


def test_whoever_the_provider_vouches_for_gets_an_account_and_a_session(database: Database) -> None:
    found = person(database, claims())
    assert found == access.Person("rita", frozenset({Role.VIEWER, Role.REVIEWER}), 1)
    with database.read() as session:
        user = session.scalars(select(User)).one()
    assert (user.issuer, user.subject, user.password_hash) == (ISSUER, "248289", "")
    made, signed_in = events(database)
    assert made[1:] == ("user.added", {"roles": "reviewer,viewer", "issuer": ISSUER})
    assert signed_in == ("person:rita", "signed.in", {"way": "openid"})


def test_a_person_is_their_subject_whatever_they_are_called_now(database: Database) -> None:
    person(database, claims(email="rita@example.org"))
    found = person(database, claims(name="Somebody", email="else@example.org", email_verified=True))
    assert found is not None
    assert found.name == "rita"
    with database.read() as session:
        assert session.scalar(select(func.count(User.id))) == 1


def test_roles_come_from_the_claims_with_each_sign_in_and_count_at_once(database: Database) -> None:
    key = provider.sign_in(database, PROVIDER, claims())
    person(database, claims(roles=("radiology-it", "canteen")))
    before = access.person_of(database, key, WEB)
    assert before is not None
    assert before.roles == {Role.ADMINISTRATOR}
    assert events(database)[-2][1:] == ("user.roles", {"roles": "administrator"})


def test_whoever_has_no_role_is_refused_and_loses_what_they_had(database: Database) -> None:
    assert refused(database, claims("1", roles=("canteen",))) == ("role", "web")
    assert refused(database, claims("1", roles=None)) == ("role", "web")
    with database.read() as session:
        assert session.scalar(select(func.count(User.id))) == 0
    key = provider.sign_in(database, PROVIDER, claims())
    assert refused(database, claims(roles=())) == ("role", "person:rita")
    assert access.person_of(database, key, WEB) is None


def test_a_name_is_neither_taken_over_from_anybody_nor_given_twice(database: Database) -> None:
    access.add_user(database, "root", "correct horse battery", [Role.ADMINISTRATOR], by="login:root")
    person(database, claims("1", "rita"))
    for name in ("root", " ROOT ", "Rita"):
        assert refused(database, claims("2", name)) == ("name_taken", "web")
    # The local account is still that of whoever knows its password.
    assert access.sign_in(database, "root", "correct horse battery") is not None


def test_a_name_that_no_account_can_have_lets_nobody_in(database: Database) -> None:
    names: list[Any] = [None, "", "a b", "HOSPITAL\\rita", "<b>rita</b>", "r" * 65, {"x": "y"}, ["rita"]]
    for name in names:
        assert refused(database, claims(name=name)) == ("name", "web")


def test_what_another_provider_says_or_says_to_another_lets_nobody_in(database: Database) -> None:
    wrong: list[dict[str, object]] = [
        {"iss": "https://login.example.org/realms/other"},
        {"iss": ISSUER + "/"},
        {"aud": "another-client"},
        {"aud": ["another-client"], "azp": "osteon"},
        {"sub": None},
        {"sub": ""},
        {"sub": 248289},
        {"sub": "x" * 256},
    ]
    for said in wrong:
        assert refused(database, {**claims(), **said}) == ("token", "web")


def test_a_disabled_person_stays_out_until_enabled_again(database: Database) -> None:
    key = provider.sign_in(database, PROVIDER, claims())
    access.disable_user(database, "rita", by="login:root")
    assert access.person_of(database, key, WEB) is None
    assert refused(database, claims(roles=("radiology-it",))) == ("disabled", "person:rita")
    access.enable_user(database, "rita", by="login:root")
    assert person(database, claims()) is not None


def test_an_account_of_a_provider_has_no_password_and_no_roles_but_those_of_the_claims(database: Database) -> None:
    person(database, claims())
    for password in ("", "correct horse battery"):
        assert access.sign_in(database, "rita", password) is None
        assert events(database)[-1][2] == {"way": "password", "why": "provider"}
    with pytest.raises(AccountError, match="has no password here"):
        access.set_password(database, "rita", "correct horse battery", by="login:root")
    with pytest.raises(AccountError, match="with each sign-in"):
        access.set_roles(database, "rita", [Role.ADMINISTRATOR], by="login:root")
    access.add_user(database, "root", "correct horse battery", [Role.ADMINISTRATOR], by="login:root")
    with pytest.raises(AccountError, match="a new password lets it in again"):
        access.enable_user(database, "root", by="login:root")


def test_an_account_is_handed_to_a_person_of_the_provider_by_an_administrator_alone(database: Database) -> None:
    access.add_user(database, "rita", "correct horse battery", [Role.ADMINISTRATOR], by="login:root")
    key = access.sign_in(database, "rita", "correct horse battery")
    assert key is not None
    assert refused(database, claims("1", "rita")) == ("name_taken", "web")
    access.link_user(database, "rita", ISSUER, "1", by="login:root")
    assert events(database)[-1] == ("login:root", "user.linked", {"issuer": ISSUER})
    assert access.person_of(database, key, WEB) is None
    assert access.sign_in(database, "rita", "correct horse battery") is None
    # Its roles are the provider's from now on, as with every account of it.
    assert person(database, claims("1", "whatever")) == access.Person(
        "rita", frozenset({Role.VIEWER, Role.REVIEWER}), 2
    )
    access.add_user(database, "bert", "correct horse battery", [Role.VIEWER], by="login:root")
    with pytest.raises(AccountError, match="this person has another account already"):
        access.link_user(database, "bert", ISSUER, "1", by="login:root")
    assert access.sign_in(database, "bert", "correct horse battery") is not None


def test_a_session_does_not_outlive_the_provider_that_vouched(database: Database) -> None:
    key = provider.sign_in(database, PROVIDER, claims())
    other = OpenIdSettings(**{**GIVEN, "issuer": "https://elsewhere.example.org"})
    assert access.person_of(database, key, WebSettings()) is None
    assert access.person_of(database, key, WebSettings(oidc=other)) is None
    assert access.person_of(database, key, WEB) is not None


def test_the_same_person_twice_at_once_gets_one_account(database: Database) -> None:
    with ThreadPoolExecutor(6) as pool:
        keys = list(pool.map(lambda _: provider.sign_in(database, PROVIDER, claims()), range(6)))
    assert len(set(keys)) == 6
    with database.read() as session:
        assert session.scalar(select(func.count(User.id))) == 1


def test_who_came_in_between_the_look_for_an_account_and_the_look_for_its_name_is_the_same_person(
    database: Database,
) -> None:
    person(database, claims())
    with database.write() as session:
        user = provider._new(session, PROVIDER, claims()["sub"], claims(), "viewer")
    assert isinstance(user, User)
    with database.read() as session:
        assert session.scalar(select(func.count(User.id))) == 1


@pytest.mark.parametrize(
    ("settings", "said", "expected"),
    [
        ({}, {"roles": "radiology-it"}, {Role.ADMINISTRATOR}),
        ({}, {"roles": ["radiology-it", "radiologists", 7, None]}, {Role.ADMINISTRATOR, Role.VIEWER, Role.REVIEWER}),
        ({}, {"roles": {"radiology-it": True}}, set()),
        ({"roles_claim": "realm_access.roles"}, {"realm_access": {"roles": ["radiology-it"]}}, {Role.ADMINISTRATOR}),
        ({"roles_claim": "realm_access.roles"}, {"realm_access": "roles"}, set()),
        ({"roles_claim": "https://x.example/roles"}, {"https://x.example/roles": "radiologists"}, "as listed"),
        ({"default_roles": ["auditor"]}, {"roles": ["canteen"]}, {Role.AUDITOR}),
        ({"default_roles": ["auditor"]}, {"roles": ["radiology-it"]}, {Role.ADMINISTRATOR}),
    ],
)
def test_roles_are_read_from_whatever_claim_they_stand_in(settings: Any, said: Any, expected: Any) -> None:
    expected = {Role.VIEWER, Role.REVIEWER} if expected == "as listed" else expected
    assert provider.roles_of(OpenIdSettings(**{**GIVEN, **settings}), said) == expected


def test_with_a_provider_nobody_comes_in_without_sign_in_and_any_address_may_be_served(tmp_path: Path) -> None:
    settings = given(tmp_path / "node", web={"host": "0.0.0.0", "oidc": GIVEN})
    upgrade(settings)
    database = Database.of(settings)
    assert not access.may_open_without_sign_in(database, settings.web.model_copy(update={"host": "127.0.0.1"}))
    assert access.cannot_serve(database, settings) is None
    person(database, claims())
    # Without the provider its accounts let nobody in.
    assert access.cannot_serve(database, settings.model_copy(update={"web": WebSettings(host="0.0.0.0")})) is not None
    (listed,) = json.loads(osteon(settings, "users", "list", "--json").stdout)
    assert (listed["name"], listed["issuer"], listed["roles"]) == ("rita", ISSUER, ["reviewer", "viewer"])
    assert osteon(settings, "users", "disable", "rita").returncode == 0
    assert osteon(settings, "users", "enable", "rita").returncode == 0
    told = osteon(settings, "users", "password", "rita", typed="correct horse battery\n")
    assert (told.returncode, told.stderr) == (1, f"Not done: rita signs in at {ISSUER} and has no password here.\n")
    database.close()


def test_sessions_that_are_over_are_removed_so_many_at_a_time(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "PRUNED_AT_ONCE", 2)
    with clock.frozen(clock.now()):
        for _ in range(3):
            found = person(database, claims())
            assert found is not None
            access.sign_out(database, found)
        provider.sign_in(database, PROVIDER, claims())
        clock.advance(timedelta(minutes=WEB.session_timeout))
        key = provider.sign_in(database, PROVIDER, claims())
        assert [access.prune_sessions(database, WEB) for _ in range(3)] == [2, 2, 0]
        assert access.person_of(database, key, WEB) is not None


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"issuer": "http://login.example.org"}, "https://HOST:PORT/PATH"),
        ({"issuer": "https://user:secret@login.example.org"}, "without user, password and query"),
        ({"console_url": "https://osteon.example.org/console"}, "without a path"),
        ({"roles": {}}, "gives nobody a role"),
        ({"roles": {"x": ["root"]}}, "Input should be"),
        ({"scopes": ["profile"]}, "has to hold openid"),
        ({"client_secret": "x"}, "Extra inputs"),
    ],
)
def test_a_provider_that_cannot_be_used_is_a_mistake_in_the_settings(changes: dict[str, object], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        OpenIdSettings(**{**GIVEN, **changes})


def test_the_provider_on_this_machine_may_speak_in_the_clear() -> None:
    local = OpenIdSettings(**{**GIVEN, "issuer": "http://localhost:8080/"})
    assert local.metadata_url == "http://localhost:8080/.well-known/openid-configuration"
