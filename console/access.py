"""Who may do what in the console: accounts, sessions, and the one function that every page and every action asks.

A person signs in once and shows a random key from then on, of which the record keeps the digest alone. Who that is, and
what they may do, is read from the record each time anew: a session that was ended, an account that was disabled and a
role that was taken away count at once. Every sign-in, every failed one and every refusal is an audit event. Local
accounts are made here; those of an OpenID provider come from `console.provider`.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from sqlalchemy import delete, exists, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from models import audit, clock
from models.database import Database
from models.settings import Settings, WebSettings
from models.tables import User, WebSession

SHORTEST_PASSWORD = 12
LONGEST_PASSWORD = 256
# Instead of a hash: no password fits.
NO_PASSWORD = ""
LONGEST_SUBJECT = 255
# So many wrong passwords cost nothing but time; each further one locks the account, for longer and longer.
FREE_FAILURES = 4
FIRST_LOCK_SECONDS = 30.0
LONGEST_LOCK_SECONDS = 900.0
# A hash takes 64 MB for a tenth of a second: more at once would be a way to take the machine's memory.
HASHES_AT_ONCE = 2
# How exactly it is known when a person was last there.
SEEN_EVERY = timedelta(seconds=20)
# Of the sessions that are over, so many are removed at a time: a sign-in does not wait for what was left for years.
PRUNED_AT_ONCE = 500
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


class Role(StrEnum):
    """What a person is to the console. One person may be several."""

    VIEWER = "viewer"
    REVIEWER = "reviewer"
    ADMINISTRATOR = "administrator"
    AUDITOR = "auditor"


class Action(StrEnum):
    """What can be done in the console."""

    TRY_IMAGE = "image.try"
    VIEW_WORKLIST = "worklist.view"
    VIEW_STUDY = "study.view"
    REVIEW = "prediction.review"
    VIEW_OPERATIONS = "operations.view"
    RETRY = "delivery.retry"
    ECHO = "peer.echo"
    VIEW_MODELS = "models.view"
    CHANGE_MODEL = "model.change"
    VIEW_AUDIT = "audit.view"
    VERIFY_AUDIT = "audit.verify"
    EXPORT_AUDIT = "audit.export"
    REPLAY = "prediction.replay"
    VIEW_DRIFT = "drift.view"


ALLOWED: Mapping[Action, frozenset[Role]] = {
    Action.TRY_IMAGE: frozenset({Role.VIEWER, Role.REVIEWER, Role.ADMINISTRATOR}),
    Action.VIEW_WORKLIST: frozenset(Role),
    Action.VIEW_STUDY: frozenset(Role),
    Action.REVIEW: frozenset({Role.REVIEWER}),
    Action.VIEW_OPERATIONS: frozenset(Role),
    Action.RETRY: frozenset({Role.ADMINISTRATOR}),
    Action.ECHO: frozenset({Role.ADMINISTRATOR}),
    Action.VIEW_MODELS: frozenset(Role),
    Action.CHANGE_MODEL: frozenset({Role.ADMINISTRATOR}),
    Action.VIEW_AUDIT: frozenset({Role.AUDITOR, Role.ADMINISTRATOR}),
    Action.VERIFY_AUDIT: frozenset({Role.AUDITOR, Role.ADMINISTRATOR}),
    Action.EXPORT_AUDIT: frozenset({Role.AUDITOR, Role.ADMINISTRATOR}),
    Action.REPLAY: frozenset({Role.AUDITOR, Role.ADMINISTRATOR}),
    Action.VIEW_DRIFT: frozenset(Role),
}


@dataclass(frozen=True)
class Person:
    """Somebody whose identity is established."""

    name: str
    roles: frozenset[Role]
    session_id: int | None = None
    """None where no sign-in is configured, so that nobody else than who sits at this machine gets here."""

    @property
    def actor(self) -> str:
        """How audit events name them."""
        return f"person:{self.name}"

    def may(self, action: Action) -> bool:
        """Whether their roles allow it: for what a page offers. Whoever does it asks `authorise`."""
        return bool(self.roles & ALLOWED[action])


AT_THIS_MACHINE = Person("at-this-machine", frozenset(Role))


class Denied(Exception):
    """This person may not do this; the text is for them to read."""


class AccountError(ValueError):
    """An account cannot be made or changed so; the text says why."""


def authorise(
    database: Database, person: Person, action: Action, *, subject: str = "console", subject_id: int | None = None
) -> None:
    """Return where the person may do this; else record that they tried, and raise Denied."""
    if person.may(action):
        return
    with database.write() as session:
        audit.record(
            session,
            actor=person.actor,
            action="access.denied",
            subject=subject,
            subject_id=subject_id,
            wanted=action.value,
        )
    needed = " or ".join(sorted(role.value for role in ALLOWED[action]))
    raise Denied(f"This needs the role {needed}.")


def may_open_without_sign_in(database: Database, web: WebSettings) -> bool:
    """Whether nobody has to sign in: nobody could, for there was never an account, and only this machine is served."""
    if web.host not in LOOPBACK or web.oidc is not None:
        return False
    with database.read() as session:
        return not session.scalar(select(exists().where(User.id.is_not(None))))


def sign_in(database: Database, name: str, password: str) -> str | None:
    """Return a new session's key, or None where name and password do not fit or the account is locked.

    The try is counted before the password is looked at, so that many at once get no more tries than one after another.
    """
    hashed = _dummy_hash()
    with database.write() as session:
        user = session.scalars(select(User).where(User.name == name.strip().lower()).with_for_update()).first()
        now = clock.now()
        if user is None:
            refused = "unknown"
        elif user.issuer is not None:
            # Compared with the dummy, as for an unknown name: no password fits.
            refused = "provider"
        else:
            locked = user.locked_until is not None and user.locked_until > now
            refused = "disabled" if user.disabled_at is not None else "locked" if locked else ""
            hashed = user.password_hash
            if not refused:
                user.failures += 1
                user.locked_until = now + _lock(user.failures) if user.failures > FREE_FAILURES else None
        user_id = None if user is None else user.id
    right = _fits(password, hashed)
    with database.write() as session:
        user = None if user_id is None else session.get_one(User, user_id)
        if user is None or refused or not right:
            audit_sign_in(session, user, "password", refused or "password")
            return None
        user.failures, user.locked_until = 0, None
        if _hasher().check_needs_rehash(hashed):
            user.password_hash = _hasher().hash(password)
        audit_sign_in(session, user, "password")
        return begin_session(session, user)


def person_of(database: Database, key: str, web: WebSettings, *, touch: bool = True) -> Person | None:
    """Return whose session this is, or None where there is none (any more).

    Parameters
    ----------
    touch
        Whether this is something that the person did; what a page asks by itself keeps no session alive.
    """
    with database.read() as session:
        found = session.execute(
            select(WebSession, User)
            .join(User, User.id == WebSession.user_id)
            .where(WebSession.key_sha256 == _digest(key), WebSession.ended_at.is_(None), User.disabled_at.is_(None))
        ).first()
    if found is None:
        return None
    held: WebSession = found[0]
    user: User = found[1]
    if user.issuer is not None and (web.oidc is None or web.oidc.issuer != user.issuer):
        # Nobody vouches for them any more.
        return None
    now = clock.now()
    idle = held.seen_at + timedelta(minutes=web.session_timeout)
    if now >= min(idle, held.began_at + timedelta(minutes=web.longest_session)):
        return None
    if touch and now - held.seen_at >= SEEN_EVERY:
        with database.write() as session:
            session.execute(update(WebSession).where(WebSession.id == held.id).values(seen_at=now))
    return Person(user.name, _roles(user.roles), held.id)


def sign_out(database: Database, person: Person) -> None:
    """End the person's session."""
    if person.session_id is None:
        return
    with database.write() as session:
        session.execute(update(WebSession).where(WebSession.id == person.session_id).values(ended_at=clock.now()))
        audit.record(session, actor=person.actor, action="signed.out", subject="console", subject_id=None)


def begin_session(session: Session, user: User) -> str:
    """Let an account in whose owner has proven who they are; return the new session's key."""
    key = secrets.token_urlsafe(32)
    now = clock.now()
    session.add(WebSession(user_id=user.id, key_sha256=_digest(key), began_at=now, seen_at=now))
    return key


def end_sessions(session: Session, user: User) -> None:
    """Put out whoever is signed in by this account."""
    open_ones = select(WebSession).where(WebSession.user_id == user.id, WebSession.ended_at.is_(None))
    for held in session.scalars(open_ones):
        held.ended_at = clock.now()


def prune_sessions(database: Database, web: WebSettings) -> int:
    """Remove sessions that are over, at most `PRUNED_AT_ONCE`; return how many. The audit trail says who was in."""
    now = clock.now()
    over = or_(
        WebSession.ended_at.is_not(None),
        WebSession.seen_at <= now - timedelta(minutes=web.session_timeout),
        WebSession.began_at <= now - timedelta(minutes=web.longest_session),
    )
    # Two that prune at once take different rows, and wait for none.
    some = select(WebSession.id).where(over).order_by(WebSession.id).limit(PRUNED_AT_ONCE)
    with database.write() as session:
        ids = session.scalars(some.with_for_update(skip_locked=True)).all()
        session.execute(delete(WebSession).where(WebSession.id.in_(ids)))
    return len(ids)


# --- accounts ---------------------------------------------------------------------------------------------------------


def add_user(database: Database, name: str, password: str, roles: Iterable[Role], *, by: str) -> None:
    """Make a local account. Raises AccountError."""
    name = checked_name(name)
    chosen = _checked_roles(roles)
    user = User(name=name, password_hash=_hash(password), roles=chosen, created_at=clock.now(), failures=0)
    try:
        with database.write() as session:
            session.add(user)
            session.flush()
            audit_account(session, by, "user.added", user, roles=user.roles)
    except IntegrityError:
        raise AccountError(f"there is an account {name} already") from None


def disable_user(database: Database, name: str, *, by: str) -> None:
    """Let nobody in by this account any more, and end its sessions. Raises AccountError."""
    with database.write() as session:
        user = _user(session, name)
        user.disabled_at = user.disabled_at or clock.now()
        end_sessions(session, user)
        audit_account(session, by, "user.disabled", user)


def enable_user(database: Database, name: str, *, by: str) -> None:
    """Let somebody in again for whom a provider vouches. Raises AccountError."""
    with database.write() as session:
        user = _user(session, name)
        if user.issuer is None:
            raise AccountError(f"{user.name} is a local account: a new password lets it in again")
        user.disabled_at = None
        audit_account(session, by, "user.enabled", user)


def link_user(database: Database, name: str, issuer: str, subject: str, *, by: str) -> None:
    """Make an account that of a person for whom a provider vouches, in place of a password. Raises AccountError."""
    if not is_subject(subject):
        raise AccountError(f"a subject has 1 to {LONGEST_SUBJECT} printable characters")
    try:
        with database.write() as session:
            user = _user(session, name)
            user.issuer, user.subject, user.password_hash, user.failures = issuer, subject, NO_PASSWORD, 0
            end_sessions(session, user)
            audit_account(session, by, "user.linked", user, issuer=issuer)
    except IntegrityError:
        raise AccountError("this person has another account already") from None


def is_subject(subject: str) -> bool:
    """Whether a provider may call somebody so: OpenID Connect Core 1.0, section 2, and what the record holds."""
    return 1 <= len(subject) <= LONGEST_SUBJECT and subject.isprintable()


def set_password(database: Database, name: str, password: str, *, by: str) -> None:
    """Give an account another password, let it in again, and end its sessions. Raises AccountError."""
    hashed = _hash(password)
    with database.write() as session:
        user = _user(session, name)
        if user.issuer is not None:
            raise AccountError(f"{user.name} signs in at {user.issuer} and has no password here")
        user.password_hash, user.failures, user.locked_until, user.disabled_at = hashed, 0, None, None
        end_sessions(session, user)
        audit_account(session, by, "user.password", user)


def set_roles(database: Database, name: str, roles: Iterable[Role], *, by: str) -> None:
    """Give an account other roles, at once. Raises AccountError."""
    chosen = _checked_roles(roles)
    with database.write() as session:
        user = _user(session, name)
        if user.issuer is not None:
            raise AccountError(f"{user.name} gets its roles from {user.issuer} with each sign-in: see web.oidc.roles")
        user.roles = chosen
        audit_account(session, by, "user.roles", user, roles=user.roles)


def users(database: Database) -> list[User]:
    """Return all accounts, in the order of their names."""
    with database.read() as session:
        return list(session.scalars(select(User).order_by(User.name)))


def has_local_accounts(database: Database) -> bool:
    """Whether somebody can sign in by a password."""
    return any(user.issuer is None and user.disabled_at is None for user in users(database))


def cannot_serve(database: Database, settings: Settings) -> str | None:
    """Say why the console must not be served at its address, or None."""
    if settings.web.host in LOOPBACK or settings.web.oidc is not None or has_local_accounts(database):
        return None
    return (
        f"web.host is {settings.web.host} and nobody can sign in: make an account with `osteon users add`, "
        "name an OpenID provider (web.oidc), or serve this machine alone with web.host 127.0.0.1"
    )


# --- below ------------------------------------------------------------------------------------------------------------

_hashing = threading.BoundedSemaphore(HASHES_AT_ONCE)


def _hasher() -> PasswordHasher:
    # RFC 9106's second recommended option, argon2-cffi's default.
    return PasswordHasher()


def _hash(password: str) -> str:
    if not SHORTEST_PASSWORD <= len(password) <= LONGEST_PASSWORD:
        raise AccountError(f"a password has {SHORTEST_PASSWORD} to {LONGEST_PASSWORD} characters")
    with _hashing:
        return _hasher().hash(password)


def _fits(password: str, hashed: str) -> bool:
    if len(password) > LONGEST_PASSWORD:
        return False
    with _hashing:
        try:
            return _hasher().verify(hashed, password)
        except (VerificationError, InvalidHashError):
            return False


_dummies: list[str] = []


def _dummy_hash() -> str:
    """What an unknown name is compared with: it takes as long as a known one."""
    if not _dummies:
        _dummies.append(_hasher().hash(secrets.token_hex()))
    return _dummies[0]


def _lock(failures: int) -> timedelta:
    seconds = FIRST_LOCK_SECONDS * 2.0 ** min(failures - FREE_FAILURES - 1, 20)
    return timedelta(seconds=min(seconds, LONGEST_LOCK_SECONDS))


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _user(session: Session, name: str) -> User:
    user = session.scalars(select(User).where(User.name == name.strip().lower())).first()
    if user is None:
        raise AccountError(f"there is no account {name.strip().lower()}")
    return user


def checked_name(name: str) -> str:
    """Return an account's name as it is kept. Raises AccountError."""
    name = name.strip().lower()
    if not 1 <= len(name) <= 64 or not name.isprintable() or any(letter in name for letter in ' "<>&\\/:'):
        raise AccountError('a name has 1 to 64 printable characters, without spaces and any of "<>&\\/:')
    return name


def _checked_roles(roles: Iterable[Role]) -> str:
    chosen = written_roles(roles)
    if not chosen:
        raise AccountError(f"an account needs a role: {', '.join(Role)}")
    return chosen


def written_roles(roles: Iterable[Role]) -> str:
    """Return roles as they are kept."""
    return ",".join(sorted({role.value for role in roles}))


def _roles(text: str) -> frozenset[Role]:
    return frozenset(Role(role) for role in text.split(",") if role)


def audit_sign_in(session: Session, user: User | None, way: str, refused: str | None = None) -> None:
    """Put a sign-in on record, or why there was none. `way`: by "password" or "openid"."""
    # A name that is no account is not kept: people type their password there.
    audit.record(
        session,
        actor=audit.part_actor("web") if user is None else f"person:{user.name}",
        action="signed.in" if refused is None else "sign_in.failed",
        subject="user",
        subject_id=None if user is None else user.id,
        way=way,
        **({} if refused is None else {"why": refused}),
    )


def audit_account(session: Session, by: str, action: str, user: User, **details: str) -> None:
    """Put on record what was done to an account, and by whom."""
    audit.record(session, actor=by, action=action, subject="user", subject_id=user.id, **details)
