"""Accounts of people for whom an OpenID provider vouches (`web.oidc`): made and changed by what it says of them.

It says with each sign-in who somebody is (`iss`, `sub`), what they are called and which roles or groups they have.

==================== ============================================================================================
what it says         what becomes of it
==================== ============================================================================================
issuer and subject   the account, whatever else changes; nothing but them identifies a person, least of all an e-mail
                     address
a name               that of the account, when it is made: audit events and reviews name people by it, so that it is
                     neither changed later nor given to a second person, of whichever kind of account
roles or groups      the account's roles, with each sign-in; without a role nobody is let in
==================== ============================================================================================

Nothing else of what it says is kept: no token, and no claim.
"""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from console import access
from console.access import AccountError, Role
from models import audit, clock
from models.database import Database
from models.settings import OpenIdSettings
from models.tables import User

WAY = "openid"


class NotLetIn(Exception):
    """This person is not let in; the text is for them to read, `why` is for the audit trail."""

    def __init__(self, why: str, said: str) -> None:
        super().__init__(said)
        self.why = why


def sign_in(database: Database, provider: OpenIdSettings, claims: Mapping[str, object]) -> str:
    """Return a new session's key for the person of whose ID token these are the claims. Raises NotLetIn.

    The token was validated: its signature, nonce and times above all. Who says it, and to whom, is asked once more.
    """
    subject = _subject(provider, claims)
    if subject is None:
        failed(database, "token")
        raise NotLetIn("token", f"What {provider.name} says cannot be used here: its settings and Osteon's differ.")
    try:
        entered = _enter(database, provider, subject, claims)
    except IntegrityError:
        # The same person, or another of that name, came here for the first time at this moment, and is known now.
        entered = _enter(database, provider, subject, claims)
    if isinstance(entered, NotLetIn):
        raise entered
    return entered


def failed(database: Database, why: str) -> None:
    """Put on record that somebody, who is not known here, was not let in."""
    with database.write() as session:
        access.audit_sign_in(session, None, WAY, why)


def roles_of(provider: OpenIdSettings, claims: Mapping[str, object]) -> frozenset[Role]:
    """Return the roles that these claims give."""
    said = _claim(claims, provider.roles_claim)
    values = said if isinstance(said, list) else [said]
    given = {Role(role) for value in values if isinstance(value, str) for role in provider.roles.get(value, ())}
    return frozenset(given or map(Role, provider.default_roles))


def _subject(provider: OpenIdSettings, claims: Mapping[str, object]) -> str | None:
    """Who it is, where it is our provider that says so, and to us."""
    audience, subject = claims.get("aud"), claims.get("sub")
    for_us = provider.client_id in (audience if isinstance(audience, list) else [audience])
    if claims.get("iss") != provider.issuer or not for_us or not isinstance(subject, str):
        return None
    return subject if access.is_subject(subject) else None


def _enter(database: Database, provider: OpenIdSettings, subject: str, claims: Mapping[str, object]) -> str | NotLetIn:
    """Bring the account up to date, or make it, and begin a session; whatever comes of it is on record."""
    roles = access.written_roles(roles_of(provider, claims))
    known = select(User).where(User.issuer == provider.issuer, User.subject == subject)
    with database.write() as session:
        user = session.scalars(known.with_for_update()).first()
        outcome = (
            _new(session, provider, subject, claims, roles)
            if user is None
            else _brought_up_to_date(session, provider, user, roles)
        )
        if isinstance(outcome, NotLetIn):
            access.audit_sign_in(session, user, WAY, outcome.why)
            return outcome
        access.audit_sign_in(session, outcome, WAY)
        return access.begin_session(session, outcome)


def _brought_up_to_date(session: Session, provider: OpenIdSettings, user: User, roles: str) -> User | NotLetIn:
    if user.disabled_at is not None:
        return NotLetIn("disabled", "Your account is disabled here. Ask who administers Osteon.")
    if user.roles != roles:
        user.roles = roles
        access.audit_account(session, audit.part_actor("web"), "user.roles", user, roles=roles)
    if not roles:
        access.end_sessions(session, user)
        return _no_role(provider)
    return user


def _new(
    session: Session, provider: OpenIdSettings, subject: str, claims: Mapping[str, object], roles: str
) -> User | NotLetIn:
    if not roles:
        return _no_role(provider)
    called = _claim(claims, provider.name_claim)
    try:
        name = access.checked_name(called if isinstance(called, str) else "")
    except AccountError:
        return NotLetIn(
            "name", f"{provider.name} says no name of you that an account here can have ({provider.name_claim})."
        )
    taken = session.scalars(select(User).where(User.name == name).with_for_update()).first()
    if taken is not None and (taken.issuer, taken.subject) == (provider.issuer, subject):
        # The same person came in by another browser since we looked.
        return _brought_up_to_date(session, provider, taken, roles)
    if taken is not None:
        return NotLetIn(
            "name_taken", f"Somebody else has the name {name} here, and names are not given twice. Ask for another one."
        )
    user = User(
        name=name,
        password_hash=access.NO_PASSWORD,
        roles=roles,
        created_at=clock.now(),
        failures=0,
        issuer=provider.issuer,
        subject=subject,
    )
    session.add(user)
    session.flush()
    access.audit_account(session, audit.part_actor("web"), "user.added", user, roles=roles, issuer=provider.issuer)
    return user


def _no_role(provider: OpenIdSettings) -> NotLetIn:
    return NotLetIn("role", f"{provider.name} knows you, but gives you no role here. Ask who administers Osteon.")


def _claim(claims: Mapping[str, object], name: str) -> object:
    """A claim by its name, or what stands in an object where dots lead."""
    if name in claims:
        return claims[name]
    found: object = claims
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found
