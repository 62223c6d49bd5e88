"""Fills a database with years of finished studies and a backlog of waiting images, in minutes, by SQL alone.

Every table gets the rows that a study of two images leaves behind when it was received, read, reported and delivered;
some studies have what happens now and then: a resend, a quarantine, a superseding report, a delivery that is due. Texts
are shorter than real ones (a header of 400 bytes, a report of 600), and the hashes of the audit chain are made up.

Guards, foreign keys and indexes stand aside meanwhile and are put back afterwards.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.pool import ConnectionPoolEntry

from models.append_only import protect
from models.database import make_engine
from models.tables import Base

A_STUDY_EVERY = 86
"""Seconds: a thousand a day."""
BEGINNING = 1_672_531_200
"""2023-01-01; a million studies later it is September 2025."""
WAITING_FROM = 10_000_000
"""Studies from this number on wait; they are newer than all that are finished."""
PATIENTS = 400_000
ROOMS = 20
AT_ONCE = 100_000
_STATEMENT_SECONDS = 3600
# Added to the number of a study's first report and delivery, and of its image's first file: the number of the second.
_SECOND = 100_000_000
DECISION = "CASE WHEN n % 20 < 3 THEN 'fracture' WHEN n % 20 = 3 THEN 'undetermined' ELSE 'no_fracture' END"


def fill(url: URL, *, finished: range, waiting: range) -> None:
    """Add the finished studies of these numbers (from 1) and the waiting ones (from 0), of two images each.

    The database has its tables, and nobody else uses it; it is left with every guard and index, and fresh statistics.
    """
    engine = make_engine(url, statement_seconds=_STATEMENT_SECONDS)
    words = _Words(engine.dialect.name == "sqlite")
    later = range(WAITING_FROM + waiting.start, WAITING_FROM + waiting.stop)
    try:
        with _bare(engine) as connection:
            for numbers, rows in ((finished, [*_shared(words), *_finished(words)]), (later, _waiting(words))):
                for first in range(numbers.start, numbers.stop, AT_ONCE):
                    for some in rows:
                        statement = some.statement(first, min(first + AT_ONCE, numbers.stop) - 1)
                        # psycopg takes a percent sign for the place of a parameter.
                        connection.exec_driver_sql(statement if words.sqlite else statement.replace("%", "%%"))
                    connection.commit()
    finally:
        engine.dispose()


@contextmanager
def _bare(engine: Engine) -> Iterator[Connection]:
    """Give a connection to tables without guards, foreign keys and indexes, and put everything back."""
    sqlite = engine.dialect.name == "sqlite"
    event.listen(engine, "connect", _quick_on_sqlite if sqlite else _quick_on_postgresql)
    indexes = [index for table in Base.metadata.sorted_tables for index in table.indexes]
    with engine.connect() as connection:
        if sqlite:
            for (name,) in connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'trigger'").all():
                connection.exec_driver_sql(f"DROP TRIGGER {name}")
        for index in indexes:
            index.drop(connection)
        connection.commit()
        yield connection
        for index in indexes:
            index.create(connection)
            connection.commit()
        protect(connection)
        if not sqlite:
            _count_on(connection)
        connection.commit()
    _settle(engine)


def _settle(engine: Engine) -> None:
    """Do what the database does by itself some time after so much was written."""
    statements = ["PRAGMA wal_checkpoint(TRUNCATE)"]
    if engine.dialect.name == "postgresql":
        statements = ["VACUUM ANALYZE", "CHECKPOINT"]
    # Neither runs in a transaction, and no statement of a node takes so long.
    plain = create_engine(engine.url, isolation_level="AUTOCOMMIT")
    with plain.connect() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    plain.dispose()


def _quick_on_sqlite(connection: Any, _entry: ConnectionPoolEntry) -> None:
    for pragma in ("foreign_keys=OFF", "synchronous=OFF", "cache_size=-500000", "temp_store=MEMORY"):
        connection.execute(f"PRAGMA {pragma}")


def _quick_on_postgresql(connection: Any, _entry: ConnectionPoolEntry) -> None:
    # The checks of foreign keys are triggers.
    for setting in ("session_replication_role=replica", "synchronous_commit=off", "maintenance_work_mem='512MB'"):
        connection.execute(f"SET {setting}")
    connection.commit()


def _count_on(connection: Connection) -> None:
    """Let PostgreSQL's sequences go on behind the rows that are there."""
    for table in Base.metadata.sorted_tables:
        owned = (
            connection.exec_driver_sql(f"SELECT pg_get_serial_sequence('{table.name}', 'id')")
            if ("id" in table.columns)
            else None
        )
        if owned is not None and (sequence := owned.scalar()) is not None:
            connection.exec_driver_sql(f"SELECT setval('{sequence}', (SELECT coalesce(max(id), 1) FROM {table.name}))")


class _Words:
    """What the two databases write differently. `n` is a study's number, `x` that of a row."""

    def __init__(self, sqlite: bool) -> None:
        self.sqlite = sqlite
        now = int(time.time())
        # A finished study came in its turn, a waiting one within the last twenty minutes.
        self.at = self.moment(
            f"(CASE WHEN n < {WAITING_FROM} THEN {BEGINNING} + n * {A_STUDY_EVERY} ELSE {now} - 1200 + n % 1200 END)"
        )
        self.later = self.moment(str(now + 900))
        self.json = "'{}'" if sqlite else "CAST('{}' AS json)"
        self.room = f"'ROOM' || (n % {ROOMS})"
        study = "1.2.826.0.1.3680043.' || n || '"
        self.header = (
            f"""'{{"study_instance_uid":"{study}","series_instance_uid":"{study}.1","sop_instance_uid":"{study}.1.' """
            f"""|| x || '","patient":{{"id":"P' || (n * 7919 % {PATIENTS}) || '","issuer":"HOSPITAL"}},"""
            """"modality":"DX","sop_class_uid":"1.2.840.10008.5.1.4.1.1.1.1","body_part_examined":"WRIST","rows":1760,"columns":1500}'"""
        )
        self.content = "zeroblob(600)" if sqlite else "decode(repeat('ab', 600), 'hex')"
        self.digest = self.digits("x", 64)

    def moment(self, seconds: str) -> str:
        return (
            f"strftime('%Y-%m-%d %H:%M:%f000', {seconds}, 'unixepoch')" if self.sqlite else f"to_timestamp({seconds})"
        )

    @property
    def day(self) -> str:
        return f"strftime('%Y%m%d', {self.at})" if self.sqlite else f"to_char({self.at}, 'YYYYMMDD')"

    def digits(self, number: str, length: int) -> str:
        return f"printf('%0{length}d', {number})" if self.sqlite else f"lpad(({number})::text, {length}, '0')"

    def key(self, number: str) -> str:
        """A key of the spool; its first two digits are the folder, of which there are 256."""
        folder = f"printf('%02x', ({number}) % 256)" if self.sqlite else f"lpad(to_hex(({number}) % 256), 2, '0')"
        return f"{folder} || {self.digits(number, 30)}"

    @property
    def claimable(self) -> dict[str, str]:
        return {"rank_at": self.at, "due_at": self.at, "tries": "1", "lease_token": "1"}


@dataclass(frozen=True)
class _Rows:
    """The rows of one table: so many for a study, where `only` holds."""

    table: str
    columns: dict[str, str]
    a_study: int = 1
    only: str = "TRUE"

    def statement(self, first: int, last: int) -> str:
        """Return what inserts those of the studies `first` to `last`."""
        a_study = self.a_study
        return (
            f"WITH RECURSIVE counted(x) AS (SELECT CAST({(first - 1) * a_study + 1} AS BIGINT) "
            f"UNION ALL SELECT x + 1 FROM counted WHERE x < {last * a_study}), "
            f"numbered(x, n) AS (SELECT x, (x + {a_study - 1}) / {a_study} FROM counted) "
            f"INSERT INTO {self.table} ({', '.join(self.columns)}) SELECT {', '.join(self.columns.values())} "
            f"FROM numbered WHERE {self.only}"
        )


def _shared(words: _Words) -> list[_Rows]:
    """The rows that all studies share, with the first study."""
    version = {"id": "1", "name": "'osteon-reader'", "version": "'2'", "bundle_sha256": "'sha'", "files": words.json}
    version |= {"card": words.json, "first_seen_at": words.at}
    active = {"id": "1", "model_version_id": "1", "role": "'active'", "at": words.at, "by": "'worker'"}
    destination = {"id": "1", "name": "'pacs'", "failures": "0", "due_at": words.at, "lease_token": "0"}
    return [
        _Rows("model_versions", version, only="n = 1"),
        _Rows("model_activations", active, only="n = 1"),
        _Rows("destinations", destination, only="n = 1"),
    ]


def _finished(words: _Words) -> list[_Rows]:
    return [
        *_received(words),
        _file(words, "2 * x", "model_input"),
        *_read(words),
        *_reported(words, "n", revision=1),
        *_now_and_then(words),
        *_event(words, "3 * x - 2", "image.received", "image", "x", 2),
        *_event(words, "3 * x - 1", "image.analysed", "image", "x", 2),
        *_event(words, "6 * n - 3", "report.created", "report", "n"),
        *_event(words, "6 * n", "report.delivery", "delivery", "n"),
    ]


def _waiting(words: _Words) -> list[_Rows]:
    """Nine of ten studies were sent completely and wait to be read; one of ten is still being received."""
    receiving = "n % 10 = 0"
    study = {
        "state": f"CASE WHEN {receiving} THEN 'receiving' ELSE 'complete' END",
        "quiet_until": f"CASE WHEN {receiving} THEN {words.later} ELSE {words.at} END",
        "complete_by": f"CASE WHEN {receiving} THEN {words.later} ELSE {words.at} END",
        "held_up": f"NOT ({receiving})",
        "decision": "CAST(NULL AS varchar)",
        "tries": "0",
    }
    image = {"state": "'received'", "reason": "CAST(NULL AS varchar)", "tries": "0"}
    received = _received(words, study=study, image=image)
    return [*received, *_event(words, "3 * x - 2", "image.received", "image", "x", 2)]


def _received(
    words: _Words, *, study: dict[str, str] | None = None, image: dict[str, str] | None = None
) -> list[_Rows]:
    association = {
        "id": "n",
        "uid": words.digits("n", 36),
        "calling_ae_title": words.room,
        "called_ae_title": "'OSTEON'",
        "address": "'10.0.0.1'",
        "opened_at": words.at,
        "seen_at": words.at,
        "closed_at": words.at,
        "outcome": "'released'",
    }
    studies = {
        "id": "n",
        "study_instance_uid": "'1.2.826.0.1.3680043.' || n",
        "patient_name": "'Family' || (n % 5000) || '^Given'",
        "patient_id": f"'P' || (n * 7919 % {PATIENTS})",
        "issuer_of_patient_id": "'HOSPITAL'",
        "patient_birth_date": "'19700101'",
        "patient_sex": "'F'",
        "accession_number": "'A' || n",
        "study_date": words.day,
        "study_description": "'Wrist, two views'",
        "calling_ae_title": words.room,
        "urgent": "FALSE",
        "state": "CASE WHEN n % 10000 = 500 THEN 'needs_attention' ELSE 'reported' END",
        "generation": "2",
        "first_image_at": words.at,
        "last_image_at": words.at,
        "quiet_until": words.at,
        "complete_by": words.at,
        "held_up": "FALSE",
        "decision": DECISION,
        **words.claimable,
    }
    images = {
        "id": "x",
        "study_id": "n",
        "association_id": "n",
        "sop_instance_uid": "'1.2.826.0.1.3680043.' || n || '.1.' || x",
        "sop_class_uid": "'1.2.840.10008.5.1.4.1.1.1.1'",
        "series_instance_uid": "'1.2.826.0.1.3680043.' || n || '.1'",
        "transfer_syntax_uid": "'1.2.840.10008.1.2.1'",
        "modality": "'DX'",
        "body_part": "'WRIST'",
        "view": "'AP'",
        "laterality": "'L'",
        "scanner": f"'DX-1, ' || {words.room}",
        "header": words.header,
        "is_image": "TRUE",
        "received_at": words.at,
        "dataset_sha256": words.digest,
        "pixel_sha256": words.digest,
        "state": "CASE WHEN x % 50 = 0 THEN 'not_analysed' ELSE 'analysed' END",
        "reason": "CASE WHEN x % 50 = 0 THEN 'outside_intended_use' END",
        **words.claimable,
    }
    return [
        _Rows("associations", association),
        _Rows("studies", studies | (study or {})),
        _Rows("images", images | (image or {}), 2),
        _file(words, "2 * x - 1", "instance"),
    ]


def _file(words: _Words, number: str, kind: str, image: str = "x", a_study: int = 2, only: str = "TRUE") -> _Rows:
    """Files of which retention removed those that were received and answered."""
    columns = {
        "id": number,
        "image_id": image,
        "kind": f"'{kind}'",
        "key": words.key(number),
        "size": "8000000",
        "sha256": words.digest,
        "digest_offset": "300",
        "stored_at": words.at,
        "removed_at": f"CASE WHEN n < {WAITING_FROM} AND '{kind}' <> 'model_input' THEN {words.at} END",
    }
    return _Rows("files", columns, a_study, only)


def _read(words: _Words) -> list[_Rows]:
    prediction = {
        "id": "x",
        "image_id": "x",
        "model_version_id": "1",
        "input_sha256": words.digest,
        "input_file_id": "2 * x",
        "pixel_sha256": words.digest,
        "pipeline_version": "1",
        "software_version": "'1.0'",
        "decision": DECISION,
        "milliseconds": "20.0",
        "created_at": words.at,
    }
    finding = {
        "id": "x",
        "prediction_id": "x",
        "code_value": "'125605004'",
        "code_scheme": "'SCT'",
        "code_meaning": "'Fracture of bone'",
        "logit": "0.5",
        "probability": "0.5",
        "absent_below": "0.2",
        "present_from": "0.6",
        "decision": DECISION,
    }
    region = {"id": "x", "finding_id": "x", "x_min": "1", "y_min": "1", "x_max": "9", "y_max": "9"}
    spoken_of = {"id": "x", "report_id": "n", "image_id": "x", "prediction_id": "x"}
    return [
        _Rows("predictions", prediction, 2),
        _Rows("findings", finding, 2),
        _Rows("regions", region, 2, "n % 20 < 3"),
        _Rows("report_inputs", spoken_of, 2),
    ]


def _reported(words: _Words, number: str, *, revision: int, only: str = "TRUE") -> list[_Rows]:
    """A report and its way. Of the first thousand deliveries fifty are due, fifty need attention, fifty wait for the
    destination to commit them, and fifty are to be asked about, however many there are."""
    stage = "(CASE WHEN n <= 1000 THEN n % 20 ELSE 0 END)"
    state = (
        f"CASE {stage} WHEN 1 THEN 'due' WHEN 7 THEN 'needs_attention' WHEN 3 THEN 'delivered' WHEN 5 THEN 'delivered' "
        "ELSE CASE WHEN n % 2 = 0 THEN 'committed' ELSE 'delivered' END END"
    )
    report = {
        "id": number,
        "study_id": "n",
        "kind": "'comprehensive_3d'",
        "revision": str(revision),
        "generation": str(revision + 1),
        "sop_class_uid": "'1.2.840.10008.5.1.4.1.1.88.34'",
        "sop_instance_uid": f"'2.25.1' || ({number})",
        "series_instance_uid": f"'2.25.2' || ({number})",
        "impression": DECISION,
        "content": words.content,
        "sha256": words.digest,
        "supersedes_id": "n" if revision > 1 else "CAST(NULL AS bigint)",
        "created_at": words.at,
    }
    delivery = {
        "id": number,
        "report_id": number,
        "study_id": "n",
        "destination": "'pacs'",
        "state": state,
        "created_at": words.at,
        "delivered_at": f"CASE WHEN {stage} NOT IN (1, 7) THEN {words.at} END",
        "commit_due_at": f"CASE {stage} WHEN 3 THEN {words.later} WHEN 5 THEN {words.at} END",
        "commit_tries": "1",
        "committed_at": f"CASE WHEN n % 2 = 0 THEN {words.at} END",
        **words.claimable,
    }
    attempt = {"id": number, "delivery_id": number, "started_at": words.at, "ended_at": words.at}
    attempt |= {"outcome": "'stored'", "status": "0"}
    rows = (("reports", report), ("deliveries", delivery), ("delivery_attempts", attempt))
    return [_Rows(table, columns, only=only) for table, columns in rows]


def _now_and_then(words: _Words) -> list[_Rows]:
    """What happens to some studies only."""
    resend = {
        "id": "n",
        "study_id": "n",
        "image_id": "2 * n",
        "association_id": "n",
        "file_id": f"{_SECOND} + 2 * n",
        "dataset_sha256": words.digits("n", 32),
        "transfer_syntax_uid": "'1.2.840.10008.1.2.1'",
        "header": words.header,
        "calling_ae_title": words.room,
        "received_at": words.at,
        "state": "'revision'",
        **words.claimable,
    }
    both = ("id", "image_id", "received_at", "calling_ae_title", "dataset_sha256", "file_id", "header")
    revision = {key: resend[key] for key in (*both, "transfer_syntax_uid")} | {"changed": words.json}
    quarantine = {key: resend[key] for key in (*both[:5], "study_id")} | {"reason": "'same_uid_other_pixels'"}
    quarantine |= {"resolved_at": f"CASE WHEN n % 10000 <> 500 THEN {words.at} END"}
    attempt = {"id": "n", "image_id": "2 * n", "lease_token": "1", "holder": "'osteon:1'", "ended_at": words.at}
    review = {"id": "n", "prediction_id": "2 * n", "reviewer": "'dr'", "agrees": "TRUE", "why": "''"}
    asked = {"id": "n", "peer": "'room'", "transaction_uid": "'2.25.3' || n", "instances": words.json}
    asked |= {"received_at": words.at, "answered_at": words.at, "state": "'answered'", **words.claimable}
    commitment = {"id": "n", "delivery_id": "n", "transaction_uid": "'2.25.4' || (n / 50)", "requested_at": words.at}
    commitment |= {"answered_at": f"CASE WHEN n % 2 = 0 THEN {words.at} END"}
    return [
        _file(words, f"{_SECOND} + 2 * n", "resend", "2 * n", 1, "n % 20 = 0"),
        _Rows("resends", resend, only="n % 20 = 0"),
        _Rows("header_revisions", revision, only="n % 20 = 0"),
        _Rows("quarantine", quarantine, only="n % 100 = 0"),
        _Rows("attempts", attempt | {"error": "'ValueError'"}, only="n % 100 = 0"),
        _Rows("reviews", review | {"created_at": words.at}, only="n % 100 = 0"),
        _Rows("commitment_requests", asked, only="n % 20 = 0"),
        _Rows("commitments", commitment, only="n % 2 = 0"),
        *_reported(words, f"{_SECOND} + n", revision=2, only="n % 50 = 0"),
    ]


def _event(words: _Words, number: str, action: str, subject: str, of: str, a_study: int = 1) -> list[_Rows]:
    event = {
        "id": number,
        "at": words.at,
        "actor": "'listener@osteon:4711'",
        "action": f"'{action}'",
        "subject": f"'{subject}'",
        "subject_id": of,
        "details": words.json,
    }
    place = {"seq": number, "event_id": number, "previous_hash": words.digest, "hash": words.digest}
    return [_Rows("audit_events", event, a_study), _Rows("audit_chain", place, a_study)]
