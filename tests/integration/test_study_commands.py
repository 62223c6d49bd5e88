"""`osteon studies` and `osteon study` on both databases: what they show, and that looking at a patient is on record."""

from __future__ import annotations

import json
import logging
import os
import stat
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pydicom
import pytest
import structlog
from pydicom import config
from pydicom.dataelem import DataElement
from pydicom.dataset import FileDataset
from typer.testing import CliRunner, Result

from console.main import app
from console.person import person
from dicom_node.wrap import wrap_picture
from models import clock
from models.settings import Peer, Settings, environment_of
from models.tables import AuditEvent, Report, Study
from models.upgrade import upgrade
from worker.predictor import Predictor

pytest.importorskip("ai_edge_litert")

from tests import litert
from tests.archive import Archive
from tests.site import Site

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
sqlite_alone = pytest.mark.parametrize("make_settings", ["sqlite"], indirect=True)
NAME, PATIENT, ACCESSION = "Planted^Name", "PLANTED-ID", "PLANTED-NUMBER"
UID = "1.2.3"


@pytest.fixture(autouse=True)
def _at_noon() -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    with clock.frozen(NOON):
        yield
    structlog.reset_defaults()


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    """A model that finds what is white."""
    return litert.predictor(tmp_path_factory.mktemp("by_hand"))


@pytest.fixture
def make_site(make_settings: Callable[..., Settings], by_hand: Predictor) -> Iterator[Callable[..., Site]]:
    sites: list[Site] = []

    def make(*peers: Peer) -> Site:
        made = make_settings(peers=[Peer(name="room", ae_title="ROOM", role="source"), *peers])
        upgrade(made)
        sites.append(Site(made, by_hand))
        return sites[-1]

    yield make
    for site in sites:
        site.close()


def radiograph(number: int = 1, *, study: str = UID, fracture: bool = True, name: str = NAME) -> FileDataset:
    edge = 40 if fracture else 20
    made = wrap_picture(
        litert.white_square((120, 200, 120 + edge, 200 + edge)),
        patient_id=PATIENT,
        patient_name=name,
        study_uid=study,
        series_uid=f"{study}.3",
        sop_instance_uid=f"{study}.4.{number}",
        body_part="WRIST",
        instance_number=number,
    )
    made.AccessionNumber = ACCESSION
    return made


def osteon(site: Site, *arguments: str) -> Result:
    environment = {**environment_of(site.settings), "COLUMNS": "200"}
    done = CliRunner().invoke(app, list(arguments), env=environment)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def as_json(site: Site, *arguments: str) -> dict[str, Any]:
    done = osteon(site, *arguments, "--json")
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def views(site: Site, action: str = "study.viewed") -> list[AuditEvent]:
    return [event for event in site.all(AuditEvent) if event.action == action]


def filled(site: Site, studies: int) -> list[int]:
    """Receive studies of one image, one after the other; return their ids, the newest first."""
    for number in range(studies):
        site.receive(radiograph(study=f"1.2.{number}", fracture=number % 2 == 0))
        clock.advance(timedelta(hours=1))
    return [study.id for study in site.all(Study)][::-1]


def test_studies_are_listed_newest_first_and_page_by_page(make_site: Callable[..., Site]) -> None:
    site = make_site()
    ids = filled(site, 5)
    first = as_json(site, "studies", "--limit", "2")
    second = as_json(site, "studies", "--limit", "2", "--after", str(first["following"]))
    third = as_json(site, "studies", "--limit", "2", "--after", str(second["following"]))
    assert [row["study"] for page in (first, second, third) for row in page["studies"]] == ids
    assert third["following"] is None
    assert f"--after {first['following']}" in osteon(site, "studies", "--limit", "2").stdout


def test_studies_are_found_by_what_the_worklist_searches_for(make_site: Callable[..., Site]) -> None:
    site = make_site()
    ids = filled(site, 2)
    site.settle()
    assert as_json(site, "studies", "--decision", "fracture")["studies"][0]["study_instance_uid"] == "1.2.0"
    assert [row["study"] for row in as_json(site, "studies", "--state", "reported")["studies"]] == ids
    for found, arguments in (
        (2, ("--calling", "ROOM")),
        (0, ("--calling", "CT1")),
        (2, ("--patient-id", PATIENT)),
        (2, ("--accession", ACCESSION)),
        (0, ("--accession", "another")),
        (1, ("--from", "2026-01-01T12:30")),
        (1, ("--before", "2026-01-01T12:30:00")),
        (0, ("--date", "1999-01-31")),
    ):
        assert len(as_json(site, "studies", *arguments)["studies"]) == found, arguments


def test_a_list_without_patients_names_none_and_is_no_view(make_site: Callable[..., Site]) -> None:
    site = make_site()
    filled(site, 1)
    for output in (osteon(site, "studies").stdout, osteon(site, "studies", "--json").stdout):
        for planted in (NAME, PATIENT, ACCESSION):
            assert planted not in output
    assert views(site) == []


@pytest.mark.parametrize("how", [["--patient"], ["--patient-id", PATIENT], ["--accession", ACCESSION]])
def test_who_sees_whose_studies_these_are_is_on_record_without_saying_whose(
    make_site: Callable[..., Site], how: list[str]
) -> None:
    site = make_site()
    ids = filled(site, 2)
    output = osteon(site, "studies", *how).stdout
    assert (NAME in output) is (how == ["--patient"])
    events = views(site)
    assert [(event.subject, event.subject_id, event.actor) for event in events] == [
        ("study", study_id, person()) for study_id in ids
    ]
    assert all(event.details == {"where": "osteon studies"} for event in events)


def test_a_search_for_a_patient_who_has_no_study_is_on_record_too(make_site: Callable[..., Site]) -> None:
    site = make_site()
    assert "No such study" in osteon(site, "studies", "--patient-id", "SOMEBODY").stdout
    (event,) = views(site)
    assert event.subject_id is None
    assert "SOMEBODY" not in repr(event.details)


@sqlite_alone
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["studies", "--date", "31.01.2026"], "no day"),
        (["studies", "--date", "2026-02-30"], "no day"),
        (["studies", "--after", "77"], "no study 77"),
        (["studies", "--after", str(10**30)], "--after"),
        (["studies", "--state", "lost"], "--state"),
        (["studies", "--limit", "501"], "--limit"),
        (["study", "name"], "neither a number nor a UID"),
    ],
)
def test_a_mistake_on_the_command_line_is_named_and_exits_with_2(
    make_site: Callable[..., Site], arguments: list[str], said: str
) -> None:
    done = osteon(make_site(), *arguments)
    assert done.exit_code == 2
    assert said in done.output


@sqlite_alone
@pytest.mark.parametrize("which", ["77", "1.2.99", "9" * 64])
def test_a_study_that_is_not_there_is_said_so_with_exit_status_1(make_site: Callable[..., Site], which: str) -> None:
    done = osteon(make_site(), "study", which)
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == f"osteon: there is no study {which}\n"


# --- one study whole --------------------------------------------------------------------------------------------------


@pytest.fixture
def reported(make_site: Callable[..., Site]) -> Iterator[Site]:
    """A study of two images that was read, reported, delivered, corrected and reported again."""
    archive = Archive()
    pacs = Peer(name="pacs", ae_title="DEMOPACS", role="destination", host="127.0.0.1", port=archive.port)
    site = make_site(pacs)
    site.report(radiograph(1), radiograph(2, fracture=False))
    site.deliver()
    for number in (1, 2):
        site.receive(radiograph(number, fracture=number == 1, name="Corrected^Name"))
    site.settle()
    site.deliver()
    yield site
    archive.stop()


def test_a_study_is_shown_whole_from_its_images_to_what_the_destination_answered(reported: Site) -> None:
    found = as_json(reported, "study", "1")
    assert as_json(reported, "study", UID) == found
    assert found["study"]["state"] == "reported"
    assert found["study"]["decision"] == "fracture"
    first, second = found["images"]
    assert [(image["state"], image["from"]) for image in (first, second)] == [("analysed", "ROOM@10.0.0.1")] * 2
    (prediction,) = first["predictions"]
    (finding,) = prediction["findings"]
    assert (prediction["decision"], finding["decision"]) == ("fracture", "fracture")
    assert prediction["role"] == "active"
    assert finding["absent_below"] <= finding["present_from"] <= finding["probability"]
    assert len(finding["regions"][0]["box"]) == 4
    assert (
        second["predictions"][0]["findings"][0]["regions"] == [] or second["predictions"][0]["decision"] != "fracture"
    )
    bundle = reported.predictor.bundle
    assert found["models"] == [
        {"name": bundle.card.name, "version": bundle.card.version, "bundle_sha256": bundle.sha256}
    ]
    old, new = found["objects"]
    assert (old["revision"], new["revision"], new["supersedes"]) == (1, 2, old["report"])
    assert new["superseded_sop_instance_uid"] == old["sop_instance_uid"]
    assert [one["image"] for one in new["rests_on"]] == [first["image"], second["image"]]
    reports = reported.all(Report)
    assert [(made["sha256"], made["size"]) for made in (old, new)] == [(r.sha256, len(r.content)) for r in reports]
    assert [(row["destination"], row["state"], row["status"]) for row in found["deliveries"]] == [
        ("pacs", "delivered", "0000")
    ] * 2
    assert [attempt["outcome"] for row in found["deliveries"] for attempt in row["attempts"]] == ["stored"] * 2
    assert [row["what"] for row in found["came_again"]] == ["header revision"] * 2
    assert found["came_again"][0]["changed"] == ["PatientName"]
    actions = [event["action"] for event in found["events"]]
    for action in ("image.received", "image.analysed", "report.created", "report.delivery", "image.revised"):
        assert action in actions
    assert [event["event"] for event in found["events"]] == sorted(event["event"] for event in found["events"])


def test_a_study_is_printed_without_patient_data_unless_asked(reported: Site) -> None:
    plain = osteon(reported, "study", "1", "--tree")
    assert plain.exit_code == 0
    for planted in ("Corrected^Name", NAME, PATIENT, ACCESSION):
        assert planted not in plain.stdout + json.dumps(as_json(reported, "study", "1", "--tree"))
    readings = plain.stdout.split("Readings")[1].split("Models")[0].splitlines()
    assert [("(120, 200)–(160, 240)" in line) for line in readings if "Fracture of bone" in line] == [True, False]
    for part in ("Images", "Readings", "Objects", "Deliveries", "Came again", "Audit trail", "header revision"):
        assert part in plain.stdout
    assert "Imaging Measurement Report" in plain.stdout
    assert "Fracture of bone" in plain.stdout
    assert views(reported) == []
    shown = osteon(reported, "study", "1", "--patient").stdout
    assert "Corrected^Name" in shown
    assert PATIENT in shown
    (event,) = views(reported)
    assert (event.subject, event.subject_id, event.actor) == ("study", 1, person())


def test_the_quarantine_of_a_study_and_an_image_that_was_not_read_are_shown(make_site: Callable[..., Site]) -> None:
    site = make_site()
    site.receive(radiograph(1))
    other = radiograph(2)
    other.PatientID = "ANOTHER"
    other.Modality = "CT"
    other["PatientBirthDate"] = DataElement("PatientBirthDate", "DA", "no day", validation_mode=config.IGNORE)
    site.receive(other)
    site.settle()
    found = as_json(site, "study", "1")
    assert found["study"]["state"] == "needs_attention"
    assert [row["reason"] for row in found["quarantine"]] == ["contradicting_patient"]
    assert found["images"][1]["reason"] == "other_modality"
    assert found["images"][1]["predictions"] == []
    assert found["images"][1]["unusable"] == ["PatientBirthDate"]
    assert "other_modality" in osteon(site, "study", "1", "--tree").stdout
    assert as_json(site, "study", "1", "--tree")["tree"] is None


def test_the_objects_are_written_as_they_were_sent_for_their_owner_alone_and_never_over_others(
    reported: Site, tmp_path: Path
) -> None:
    folder = tmp_path / "out" / "here"
    found = as_json(reported, "study", "1", "--export", str(folder))
    contents = [report.content for report in reported.all(Report)]
    assert [Path(path).read_bytes() for path in found["exported"]] == contents
    assert sorted(found["exported"]) == sorted(map(str, folder.iterdir()))
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert pydicom.dcmread(path).PatientID == PATIENT
        assert PATIENT not in path.name
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (event,) = views(reported, "study.exported")
    assert event.subject_id == 1
    again = osteon(reported, "study", "1", "--export", str(folder))
    assert again.exit_code == 1
    assert "File exists" in again.stderr
    assert [Path(path).read_bytes() for path in found["exported"]] == contents


def test_a_user_without_a_name_is_on_record_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(variable, raising=False)

    def nobody(number: int) -> None:
        raise KeyError(number)

    monkeypatch.setattr("pwd.getpwuid", nobody)
    assert person().startswith(f"uid {os.getuid()}@")
