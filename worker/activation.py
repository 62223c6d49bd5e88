"""Which model reads: the one that is active, and beside it a shadow, whose answers are recorded and never sent.

The record says it, not the settings alone:

===============================================  =======================================================================
what happens                                     what is active then
===============================================  =======================================================================
a node starts for the first time                 the bundle of the settings, or the one that is shipped
the settings name another bundle (an upgrade of  that one
Osteon may ship another)
`osteon model promote`                           the shadow; there is no shadow any more
`osteon model rollback`                          the one before, whatever made it so
===============================================  =======================================================================

So a restart undoes no decision of a person, and a decision of a person does not outlive the settings it was made under.
A bundle that a person names is kept in the data folder: what reads must not go away with somebody's home folder.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from models import audit, clock, logs
from models.database import Database
from models.settings import Settings
from models.tables import ModelActivation, ModelVersion
from worker.bundle import SUMS, Bundle, BundleError, default_bundle_path

ACTIVE, SHADOW, NO_SHADOW = "active", "shadow", "no_shadow"
"""Roles of an activation; the last row of a kind says what is."""
KEPT = "bundles"
"""Folder in the data folder for bundles that a person named."""
BY_SETTINGS, PROMOTED, ROLLED_BACK = "settings", "promoted", "rolled_back"
"""Why a model version became active."""
log = logs.get("model")


class CannotActivate(Exception):
    """What was asked for is not possible as things are; the message says why."""


@dataclass(frozen=True)
class InForce:
    """What a process reads with."""

    active: Bundle
    active_id: int
    shadow: Bundle | None
    shadow_id: int | None
    stamp: int
    """Of the record when this was read: another one means to look again (`stamp`)."""


def in_force(settings: Settings, database: Database, given: Bundle, actor: str) -> InForce:
    """Return what is to read now; `given` is the bundle of the settings, which becomes active where it is new there.

    Raises
    ------
    BundleError
        If the bundle that is active is not to be had any more. A shadow that is not to be had is left out, and the log
        says so.
    """
    follow_settings(database, given, actor)
    with database.read() as session:
        now = stamp(session)
        active, shadow = active_version(session), shadow_version(session)
    assert active is not None  # noqa: S101 (the settings' bundle is there, at least)
    found = given if active.bundle_sha256 == given.sha256 else find(settings, active.bundle_sha256)
    beside = None
    if shadow is not None:
        try:
            beside = find(settings, shadow.bundle_sha256)
        except BundleError as error:
            log.error("no shadow model", bundle_sha256=shadow.bundle_sha256, exc_info=error)
    return InForce(found, active.id, beside, shadow.id if shadow is not None and beside is not None else None, now)


def follow_settings(database: Database, given: Bundle, actor: str) -> int:
    """Make the bundle of the settings active if they named another one, or none, when they were looked at last.

    Returns its model version.
    """
    with database.read() as session:
        last = _by_settings(session)
    if last is not None and last.bundle_sha256 == given.sha256:
        return last.id
    try:
        with database.write() as session:
            last = _by_settings(session)
            if last is not None and last.bundle_sha256 == given.sha256:
                return last.id
            version = _registered(session, given)
            return _activate(session, version, ACTIVE, by=actor, action="model.activated", reason=BY_SETTINGS)
    except IntegrityError:  # another worker was quicker
        with database.read() as session:
            return session.scalars(select(ModelVersion.id).where(ModelVersion.bundle_sha256 == given.sha256)).one()


def active(settings: Settings, database: Database) -> tuple[Bundle, int]:
    """Return the bundle that is active by the record, and its model version. Raises BundleError."""
    with database.read() as session:
        version = active_version(session)
    if version is None:
        raise BundleError("no bundle is active by the record")
    return find(settings, version.bundle_sha256), version.id


def stamp(session: Session) -> int:
    """Return a number that grows with every activation."""
    return session.scalar(select(func.max(ModelActivation.id))) or 0


def active_version(session: Session) -> ModelVersion | None:
    """Return the model version whose answers are sent."""
    return _last(session, (ACTIVE,))[1]


def shadow_version(session: Session) -> ModelVersion | None:
    """Return the model version that reads beside it, if any."""
    role, version = _last(session, (SHADOW, NO_SHADOW))
    return version if role == SHADOW else None


def history(session: Session, *, limit: int) -> list[tuple[ModelActivation, ModelVersion]]:
    """Return who let which model read, or no more, the newest first."""
    rows = session.execute(
        select(ModelActivation, ModelVersion)
        .join(ModelVersion, ModelVersion.id == ModelActivation.model_version_id)
        .order_by(ModelActivation.id.desc())
        .limit(limit)
    )
    return [(activation, version) for activation, version in rows]


def before_active(session: Session) -> ModelVersion | None:
    """Return the model version that was active before the one that is: what `roll_back` makes active."""
    active = active_version(session)
    if active is None:
        return None
    return session.scalars(
        select(ModelVersion)
        .join(ModelActivation, ModelActivation.model_version_id == ModelVersion.id)
        .where(ModelActivation.role == ACTIVE, ModelVersion.id != active.id)
        .order_by(ModelActivation.id.desc())
        .limit(1)
    ).first()


def set_shadow(settings: Settings, database: Database, bundle: Bundle, *, by: str) -> int:
    """Let a bundle read beside the active one from now on; return its model version. Raises CannotActivate, OSError."""
    with database.read() as session:
        active = active_version(session)
    if active is None:
        raise CannotActivate("no worker has run here yet: there is no active model to compare with")
    if active.bundle_sha256 == bundle.sha256:
        raise CannotActivate("this model is the active one")
    keep(settings, bundle)
    with database.write() as session:
        return _activate(session, _registered(session, bundle), SHADOW, by=by, action="model.shadowed")


def end_shadow(database: Database, *, by: str) -> int:
    """Let nothing read beside the active model; return the version that did. Raises CannotActivate."""
    with database.write() as session:
        shadow = shadow_version(session)
        if shadow is None:
            raise CannotActivate("there is no shadow model")
        return _activate(session, shadow, NO_SHADOW, by=by, action="model.shadow_ended")


def promote(settings: Settings, database: Database, *, by: str, expected: int | None = None) -> int:
    """Make the shadow the active model; return its version. Raises CannotActivate, or BundleError where it is gone.

    `expected` is the version that a person was asked about: another one is not promoted in its place.
    """
    with database.read() as session:
        shadow = shadow_version(session)
    if shadow is None:
        raise CannotActivate("there is no shadow model to promote: `osteon model shadow BUNDLE` makes one")
    if expected not in (None, shadow.id):
        raise CannotActivate("the shadow model was changed meanwhile")
    find(settings, shadow.bundle_sha256)
    with database.write() as session:
        again = shadow_version(session)
        if again is None or again.id != shadow.id:
            raise CannotActivate("the shadow model was changed meanwhile")
        _activate(session, again, ACTIVE, by=by, action="model.promoted", reason=PROMOTED)
        return _activate(session, again, NO_SHADOW, by=by, action="model.shadow_ended")


def roll_back(settings: Settings, database: Database, *, by: str, expected: int | None = None) -> int:
    """Make the model active that was so before; return its version. Raises CannotActivate, or BundleError.

    `expected` as in `promote`.
    """
    with database.read() as session:
        before = before_active(session)
    if before is None:
        raise CannotActivate("no other model was active before")
    if expected not in (None, before.id):
        raise CannotActivate("another model was activated meanwhile")
    find(settings, before.bundle_sha256)
    with database.write() as session:
        again = before_active(session)
        if again is None or again.id != before.id:
            raise CannotActivate("another model was activated meanwhile")
        shadow = shadow_version(session)
        if shadow is not None and shadow.id == again.id:
            _activate(session, shadow, NO_SHADOW, by=by, action="model.shadow_ended")
        return _activate(session, again, ACTIVE, by=by, action="model.rolled_back", reason=ROLLED_BACK)


# --- bundles ----------------------------------------------------------------------------------------------------------


def find(settings: Settings, sha256: str) -> Bundle:
    """Return the bundle with this sum, from wherever bundles are. Raises BundleError where it is nowhere."""
    for folder in folders(settings):
        # What it says it is costs nothing to look up; only what is wanted is read whole.
        if sums_of(folder) != sha256:
            continue
        try:
            bundle = Bundle.load(folder)
        except BundleError:
            continue
        if bundle.sha256 == sha256:
            return bundle
    raise BundleError(f"the bundle {sha256[:12]} that is in force by the record is not on this machine")


def sums_of(folder: Path) -> str | None:
    """Return what the bundle in a folder says it is, without checking it; None where there is none."""
    try:
        return hashlib.sha256((folder / SUMS).read_bytes()).hexdigest()
    except OSError:
        return None


def keep(settings: Settings, bundle: Bundle) -> Path:
    """Copy a bundle into the data folder, where every process of the node finds it. Raises OSError."""
    kept = _kept(settings, bundle.sha256)
    if kept.is_dir():
        return kept
    kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    beside = kept.with_name(f".{kept.name}.{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(bundle.path, beside)
    try:
        beside.rename(kept)
    except OSError:
        shutil.rmtree(beside, ignore_errors=True)
        if not kept.is_dir():  # somebody else was quicker
            raise
    return kept


def _kept(settings: Settings, sha256: str) -> Path:
    return settings.data_dir / KEPT / sha256


def folders(settings: Settings) -> Iterator[Path]:
    """Return where bundles may lie: those that a person named, that of the settings, and those that are shipped."""
    kept = settings.data_dir / KEPT
    if kept.is_dir():
        yield from sorted(folder for folder in kept.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    if settings.model_bundle is not None:
        yield settings.model_bundle
    shipped = default_bundle_path()
    yield shipped
    yield from sorted(folder for folder in shipped.parent.iterdir() if folder.is_dir() and folder != shipped)


# --- rows -------------------------------------------------------------------------------------------------------------


def _by_settings(session: Session) -> ModelVersion | None:
    return session.scalars(
        select(ModelVersion)
        .join(ModelActivation, ModelActivation.model_version_id == ModelVersion.id)
        # What was activated before there were reasons was so by the settings.
        .where(ModelActivation.role == ACTIVE, func.coalesce(ModelActivation.reason, BY_SETTINGS) == BY_SETTINGS)
        .order_by(ModelActivation.id.desc())
        .limit(1)
    ).first()


def _last(session: Session, roles: tuple[str, ...]) -> tuple[str | None, ModelVersion | None]:
    row = session.execute(
        select(ModelActivation.role, ModelVersion)
        .join(ModelVersion, ModelVersion.id == ModelActivation.model_version_id)
        .where(ModelActivation.role.in_(roles))
        .order_by(ModelActivation.id.desc())
        .limit(1)
    ).first()
    return (None, None) if row is None else (row[0], row[1])


def _registered(session: Session, bundle: Bundle) -> ModelVersion:
    version = session.scalars(select(ModelVersion).where(ModelVersion.bundle_sha256 == bundle.sha256)).first()
    if version is None:
        version = ModelVersion(
            name=bundle.card.name,
            version=bundle.card.version,
            bundle_sha256=bundle.sha256,
            files=dict(bundle.files),
            card=bundle.card.model_dump(mode="json"),
            first_seen_at=clock.now(),
        )
        session.add(version)
        session.flush()
    return version


def _activate(
    session: Session, version: ModelVersion, role: str, *, by: str, action: str, reason: str | None = None
) -> int:
    session.add(ModelActivation(model_version_id=version.id, role=role, at=clock.now(), by=by[:64], reason=reason))
    session.flush()
    audit.record(
        session,
        actor=by,
        action=action,
        subject="model_version",
        subject_id=version.id,
        bundle_sha256=version.bundle_sha256,
    )
    return version.id
