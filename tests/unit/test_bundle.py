"""A bundle is used only when every byte of it is what was released."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import SecondaryCaptureImageStorage

from dicom_node.headers import Code
from dicom_node.pixels import PIPELINE_VERSION
from models.reasons import Reason
from tests.reports import header
from worker.bundle import Bundle, BundleError, Platt, Temperature, default_bundle_path


def card() -> dict[str, Any]:
    return {
        "schema_version": 1,
        "name": "test-model",
        "version": "1",
        "created": "2026-01-02T03:04:05Z",
        "input": {"rows": 150, "columns": 150, "pipeline_version": PIPELINE_VERSION},
        "image_modalities": ["CR", "DX"],
        "findings": [
            {
                "code": {"value": "125605004", "scheme": "SCT", "meaning": "Fracture of bone"},
                "output": 0,
                "operating_points": {"absent_below": 0.1, "present_from": 0.4},
                "calibration": {"method": "temperature", "parameters": {"temperature": 1.5}},
            }
        ],
        "intended_use": {"statement": "A test.", "body_parts": ["HAND", "TIBIAFIBULA"], "limits": []},
        "training_data": [],
        "metrics": {"dataset": "none", "images": 0, "positives": 0, "groups": 0, "interval": "none", "values": {}},
        "software": {},
    }


METRICS = {
    "dataset": "folds",
    "images": 10,
    "positives": 4,
    "groups": 5,
    "interval": "none",
    "values": {"auc": {"value": 0.9, "low": 0.8, "high": 0.95}},
    "subgroups": {"hand": {"images": 4, "positives": 2, "values": {"auc": {"value": 0.9, "low": 0.8, "high": 0.95}}}},
    "baselines": {"pointing": 0.06},
    "test_reads": 1,
}
SHARE = {"value": 0.1, "low": 0.05, "high": 0.2}
SCORES: dict[str, Any] = {
    "edges": [0, 0.5, 1],
    "findings": [
        {
            "code": {"value": "125605004", "scheme": "SCT", "meaning": "Fracture of bone"},
            "with_finding": [1, 3],
            "without_finding": [5, 1],
            "present": SHARE,
            "undetermined": SHARE,
        }
    ],
    "refused": SHARE,
}
NEGATIVE = {"name": "chest", "description": "Chests.", "images": 9, "refused": 8, "refused_by_features": 7}
GATE = {
    "refuse_above": 3.5,
    "method": "Mahalanobis",
    "negatives": [NEGATIVE],
    "false_refusals": None,
    "accepted_images": 100,
    "accepted_refused": 1,
}
HEATMAP = {"rows": 32, "columns": 32, "region_share": 0.5}
COMPARED = {
    "name": "Lite0",
    "input": "384 x 384",
    "parameters": 3_000_000,
    "megabytes": 13.1,
    "milliseconds": None,
    "values": {"auc": 0.9},
    "note": "",
}


def write(folder: Path, content: dict[str, Any] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "card.json").write_text(json.dumps(content or card()))
    (folder / "model.tflite").write_bytes(b"model")
    (folder / "roc.png").write_bytes(b"plot")
    sums = [
        f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n"
        for name in ("card.json", "model.tflite", "roc.png")
    ]
    (folder / "SHA256SUMS").write_text("".join(sums))
    return folder


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return Bundle.load(write(tmp_path))


def test_a_bundle_that_matches_its_sums_is_loaded(tmp_path: Path) -> None:
    bundle = Bundle.load(write(tmp_path))
    assert bundle.model == b"model"
    assert bundle.card.findings[0].code.value == "125605004"
    assert bundle.sha256 == hashlib.sha256((tmp_path / "SHA256SUMS").read_bytes()).hexdigest()
    assert set(bundle.files) == {"card.json", "model.tflite", "roc.png"}


@pytest.mark.parametrize("name", ["card.json", "model.tflite", "roc.png"])
def test_a_changed_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    with (write(tmp_path) / name).open("ab") as file:
        file.write(b" ")
    with pytest.raises(BundleError, match=rf"^{name}: does not match"):
        Bundle.load(tmp_path)


@pytest.mark.parametrize("name", ["card.json", "model.tflite", "roc.png", "SHA256SUMS"])
def test_a_missing_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    (write(tmp_path) / name).unlink()
    with pytest.raises(BundleError, match=rf"^{name}: cannot be read"):
        Bundle.load(tmp_path)


def test_an_extra_file_is_refused_by_name(tmp_path: Path) -> None:
    (write(tmp_path) / "extra.txt").touch()
    with pytest.raises(BundleError, match=r"^extra\.txt: not named"):
        Bundle.load(tmp_path)


@pytest.mark.parametrize("line", ["../card.json", "a/b", "card.json", ""])
def test_sums_that_name_anything_but_a_file_of_the_folder_once_are_refused(tmp_path: Path, line: str) -> None:
    with (write(tmp_path) / "SHA256SUMS").open("a") as file:
        file.write(f"{'0' * 64}  {line}\n")
    with pytest.raises(BundleError, match=r"^SHA256SUMS: "):
        Bundle.load(tmp_path)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"^SHA256SUMS: "):
        Bundle.load(tmp_path / "nowhere")


def test_a_bundle_for_another_pixel_pipeline_is_refused(tmp_path: Path) -> None:
    content = card()
    content["input"]["pipeline_version"] = PIPELINE_VERSION + 1
    with pytest.raises(BundleError, match=r"^card\.json: made for pixel pipeline"):
        Bundle.load(write(tmp_path, content))


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"surprise": 1}, "surprise"),
        ({"schema_version": 2}, "schema_version"),
        ({"findings": []}, "findings"),
        ({"image_modalities": []}, "image_modalities"),
        ({"created": "yesterday"}, "created"),
        ({"name": "../escape"}, "name"),
    ],
)
def test_a_card_that_is_not_exactly_a_card_is_refused_where_it_is_wrong(
    tmp_path: Path, change: dict[str, Any], where: str
) -> None:
    with pytest.raises(BundleError, match=rf"^card\.json: {where}"):
        Bundle.load(write(tmp_path, card() | change))


def test_operating_points_in_the_wrong_order_are_refused(tmp_path: Path) -> None:
    content = card()
    content["findings"][0]["operating_points"] = {"absent_below": 0.5, "present_from": 0.4}
    with pytest.raises(BundleError, match="absent_below lies above present_from"):
        Bundle.load(write(tmp_path, content))


def test_an_unknown_calibration_is_refused(tmp_path: Path) -> None:
    content = card()
    content["findings"][0]["calibration"]["method"] = "wish"
    with pytest.raises(BundleError, match=r"^card\.json: findings\.0\.calibration"):
        Bundle.load(write(tmp_path, content))


def test_a_card_may_tell_of_a_heatmap_a_gate_folds_and_the_other_architectures(tmp_path: Path) -> None:
    told = {"heatmap": HEATMAP, "gate": GATE, "cross_validation": METRICS, "comparison": [COMPARED]}
    read = Bundle.load(write(tmp_path, card() | told)).card
    assert read.heatmap is not None
    assert (read.heatmap.rows, read.heatmap.columns, read.heatmap.region_share) == (32, 32, 0.5)
    assert read.gate is not None
    assert read.gate.refuse_above == 3.5
    assert read.gate.negatives[0].refused_by_features == 7
    assert read.cross_validation is not None
    assert read.cross_validation.subgroups["hand"].values["auc"].low == 0.8
    assert read.cross_validation.test_reads == 1
    assert read.comparison[0].megabytes == 13.1


def test_a_card_without_them_says_so(bundle: Bundle) -> None:
    read = bundle.card
    assert (read.heatmap, read.gate, read.cross_validation, read.comparison) == (None, None, None, ())
    assert (read.metrics.subgroups, read.metrics.baselines, read.metrics.test_reads) == ({}, {}, None)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"heatmap": HEATMAP | {"region_share": 0.0}}, r"heatmap\.region_share"),
        ({"heatmap": HEATMAP | {"rows": 0}}, r"heatmap\.rows"),
        ({"gate": GATE | {"refuse_above": -1}}, r"gate\.refuse_above"),
        ({"gate": GATE | {"accepted_refused": 101}}, "gate: .*more are refused than there are"),
        ({"gate": GATE | {"negatives": [NEGATIVE | {"refused": 10}]}}, r"gate\.negatives\.0: .*more are refused"),
        ({"gate": GATE | {"negatives": [NEGATIVE | {"refused": 6}]}}, r"gate\.negatives\.0: .*more are refused"),
        ({"cross_validation": METRICS | {"test_reads": 0}}, r"cross_validation\.test_reads"),
    ],
)
def test_a_heatmap_or_a_gate_that_cannot_be_is_refused_where_it_is_wrong(
    tmp_path: Path, change: dict[str, Any], where: str
) -> None:
    with pytest.raises(BundleError, match=rf"^card\.json: {where}"):
        Bundle.load(write(tmp_path, card() | change))


@pytest.mark.parametrize(
    ("body_part", "modality", "expected"),
    [
        ("HAND", "CR", None),
        ("TIBIA_FIBULA", "DX", None),
        ("TIB FIB", "CR", None),
        ("", "DX", None),
        ("", "", None),
        ("CHEST", "CR", Reason.OUTSIDE_INTENDED_USE),
        ("SKULL", "", Reason.OUTSIDE_INTENDED_USE),
        ("NO KNOWN PART", "CR", Reason.OUTSIDE_INTENDED_USE),
        ("HAND", "CT", Reason.OTHER_MODALITY),
        ("HAND", "OT", Reason.OTHER_MODALITY),
        ("CHEST", "CT", Reason.OTHER_MODALITY),
    ],
)
def test_only_what_is_stated_and_not_intended_is_refused(
    bundle: Bundle, body_part: str, modality: str, expected: Reason | None
) -> None:
    assert bundle.accepts(header(body_part_examined=body_part, modality=modality)) is expected


@pytest.mark.parametrize(
    "body_part",
    ["L HAND", "HAND_RIGHT", "RT HAND", "LHAND", "HANDS", "LINKS HAND", "HAND  PA", "HAND 2 VIEWS", "BOTH HANDS"],
)
def test_side_view_and_number_around_a_hand_leave_it_a_hand(bundle: Bundle, body_part: str) -> None:
    assert bundle.accepts(header(body_part_examined=body_part)) is None


@pytest.mark.parametrize("body_part", ["L SPINE", "LSPINE", "CHEST  PA", "HAND CHEST", "RIBS", "LEFT FOOT", "L LEG"])
def test_words_around_another_part_do_not_make_it_an_intended_one(bundle: Bundle, body_part: str) -> None:
    assert bundle.accepts(header(body_part_examined=body_part)) is Reason.OUTSIDE_INTENDED_USE


@pytest.mark.parametrize(
    ("intended", "body_parts"),
    [
        ("EXTREMITY", "EXTREMITIES"),
        ("ARM", "UPPER EXTREMITIES|UP_EXM|MEMBRE SUPÉRIEUR"),
        ("LEG", "LOWER EXTREMITIES|LOW_EXM|BEIN"),
        ("FINGER", "DIGIT|DIGITS|5TH DIGIT|FINGER_II|DOIGT|DEDO|DITO"),
        ("HAND", "HAND 2V|HAND TRAUMA|METACARPAL|METACARPALS|METACARPAL BONES|MAIN|MANO|MANO DERECHA"),
        ("WRIST", "CARPAL|CARPAL BONES|CARPUS|HANDGELENK LINKS|POIGNET|MUÑECA|MUNECA|POLSO"),
        ("FOREARM", "UNTERARM|AVANT-BRAS|ANTEBRAZO|AVAMBRACCIO"),
        ("ELBOW", "ELBOW TRAUMA|ELLENBOGEN|COUDE|CODO|GOMITO"),
        ("HUMERUS", "HUMERI|OBERARM|BRAS|HUMERAL HEAD"),
        ("SHOULDER", "SHOULDER Y|SHOULDER AXILLARY|SCHULTER|ÉPAULE|EPAULE|HOMBRO|SPALLA"),
        ("PELVIS", "BECKEN|BASSIN|BACINO"),
        ("HIP", "HUEFTE|HÜFTE|HANCHE|CADERA|ANCA"),
        ("FEMUR", "FEMORAL NECK|FEMUR NECK|NECK OF FEMUR|NECK OF THE FEMUR|L FEMORAL NECK|OBERSCHENKEL|COL DU FÉMUR"),
        ("KNEE", "KNEE SKYLINE|KNIE|GENOU DROIT|RODILLA|GINOCCHIO"),
        ("PATELLA", "PATELLAE|ROTULE"),
        ("LOWERLEG", "UNTERSCHENKEL|JAMBE|PIERNA"),
        ("ANKLE", "ANKLE MORTISE|SPRUNGGELENK|CHEVILLE|TOBILLO|CAVIGLIA"),
        ("CALCANEUS", "CALCANEUM|FERSE"),
        ("FOOT", "FOOT WB|FOOT STANDING|TARSUS|TARSAL|METATARSAL|METATARSALS|FUSS|FUß|PIED|PIE|PIEDE"),
        ("TOE", "ZEHE|ORTEIL|DEDO DEL PIE"),
        ("HANDGELENK", "WRIST"),
    ],
)
def test_a_synonym_of_an_intended_part_is_that_part_and_no_other(
    tmp_path: Path, intended: str, body_parts: str
) -> None:
    content = card()
    content["intended_use"]["body_parts"] = [intended]
    only_that = Bundle.load(write(tmp_path, content))
    content["intended_use"]["body_parts"] = ["CLAVICLE"]
    only_another = Bundle.load(write(tmp_path, content))
    shipped = Bundle.load(default_bundle_path())
    for body_part in body_parts.split("|"):
        image = header(body_part_examined=body_part)
        assert only_that.accepts(image) is None, body_part
        assert shipped.accepts(image) is None, body_part
        assert only_another.accepts(image) is Reason.OUTSIDE_INTENDED_USE, body_part


TRUNK_AND_HEAD = [
    *("CHEST", "CHEST 2V", "CHEST STANDING", "SKULL", "SKULL TRAUMA", "CSPINE", "C SPINE", "L SPINE", "LWS", "HWS"),
    *("THORAX", "TORAX", "ABDOMEN", "ABDOMEN GENERAL", "OTHER CHEST", "NECK", "NECK TRAUMA", "HEAD", "HALS", "RIPPEN"),
    *("COLONNE LOMBAIRE", "COLUMNA", "WIRBELSÄULE", "SCHÄDEL", "BAUCH", "BRUST", "CRANEO", "L4", "MANDIBLE", "STERNUM"),
]


@pytest.mark.parametrize("body_part", TRUNK_AND_HEAD)
@pytest.mark.parametrize("beside", ["", " QUX", " HAND", " UNKNOWN"])
def test_trunk_and_head_are_refused_whatever_stands_beside_them(body_part: str, beside: str) -> None:
    shipped = Bundle.load(default_bundle_path())
    stated = header(body_part_examined=body_part + (beside if body_part != "L4" else ""))
    assert shipped.accepts(stated) is Reason.OUTSIDE_INTENDED_USE


@pytest.mark.parametrize("body_part", ["CHEST", "CHEST QUX", "QUX LWS", "THORAX QUX"])
def test_a_chest_is_refused_beside_an_unknown_word_and_a_coded_hand(bundle: Bundle, body_part: str) -> None:
    stated = header(body_part_examined=body_part, anatomic_region=Code("85562004", "SCT", "Hand"))
    assert bundle.accepts(stated) is Reason.OUTSIDE_INTENDED_USE


@pytest.mark.parametrize("body_part", ["QUX", "HAND QUX", "TRAUMA", "STANDING", "Y", "C ARM", "DORSAL", "C5", "T12"])
def test_what_is_not_understood_or_could_be_said_of_any_part_is_refused_alone(bundle: Bundle, body_part: str) -> None:
    assert bundle.accepts(header(body_part_examined=body_part)) is Reason.OUTSIDE_INTENDED_USE


@pytest.mark.parametrize(
    "body_part",
    [
        *("LEFT", "R", "UNKNOWN", "AP", "NA", "N/A", "N A", "NONE", "OTHER", "OT", "MISC", "DEFAULT", "GENERAL"),
        *("UNSPECIFIED", "NOT SPECIFIED", "OTHER LEFT"),
    ],
)
def test_a_body_part_that_names_no_part_is_none_stated(bundle: Bundle, body_part: str) -> None:
    assert bundle.accepts(header(body_part_examined=body_part)) is None


@pytest.mark.parametrize(
    ("body_part", "region", "expected"),
    [
        ("", Code("85562004", "SCT", "Hand"), None),
        ("", Code("T-D8700", "SRT", "Hand"), None),
        ("", Code("T-D8700", "SNM3", "Main"), None),
        ("", Code("X", "99SITE", "Bone structure of left hand"), None),
        ("", Code("816094009", "SCT", "Chest"), Reason.OUTSIDE_INTENDED_USE),
        ("", Code("51185008", "SCT", "Thorax"), Reason.OUTSIDE_INTENDED_USE),
        ("", Code("X", "99SITE", "No known part"), Reason.OUTSIDE_INTENDED_USE),
        ("HAND", Code("85562004", "SCT", "Hand"), None),
        ("HAND", Code("816094009", "SCT", "Chest"), Reason.OUTSIDE_INTENDED_USE),
        ("CHEST", Code("85562004", "SCT", "Hand"), Reason.OUTSIDE_INTENDED_USE),
        ("HAND", Code("X", "99SITE", "No known part"), None),
        ("NO KNOWN PART", Code("85562004", "SCT", "Hand"), None),
    ],
)
def test_the_coded_region_is_judged_too_and_passed_over_only_where_it_is_not_understood_beside_one_that_is(
    bundle: Bundle, body_part: str, region: Code, expected: Reason | None
) -> None:
    assert bundle.accepts(header(body_part_examined=body_part, anatomic_region=region)) is expected


def test_a_word_of_the_card_that_nobody_else_knows_is_taken_as_it_stands(tmp_path: Path) -> None:
    content = card()
    content["intended_use"]["body_parts"] = ["QUX_BONE"]
    bundle = Bundle.load(write(tmp_path, content))
    assert bundle.accepts(header(body_part_examined="QUX BONE")) is None
    assert bundle.accepts(header(body_part_examined="HAND")) is Reason.OUTSIDE_INTENDED_USE


@pytest.mark.parametrize(
    ("modality", "expected"),
    [
        ("OT", None),
        ("", None),
        ("CR", None),
        ("RF", Reason.OTHER_MODALITY),
        ("US", Reason.OTHER_MODALITY),
        ("CT", Reason.OTHER_MODALITY),
    ],
)
def test_a_secondary_capture_of_other_or_no_modality_is_not_refused_for_it(
    bundle: Bundle, modality: str, expected: Reason | None
) -> None:
    capture = header(sop_class_uid=SecondaryCaptureImageStorage, body_part_examined="HAND", modality=modality)
    assert bundle.accepts(capture) is expected


@pytest.mark.parametrize(
    ("ages", "age", "expected"),
    [
        ({"from_years": 18}, 17.99, Reason.OUTSIDE_INTENDED_AGE),
        ({"from_years": 18}, 18.0, None),
        ({"from_years": 18}, 99.0, None),
        ({"from_years": 18}, None, None),
        ({"from_years": 0, "to_years": 18}, 17.99, None),
        ({"from_years": 0, "to_years": 18}, 18.0, Reason.OUTSIDE_INTENDED_AGE),
        (None, 3.0, None),
    ],
)
def test_a_stated_age_outside_the_intended_ones_is_refused_and_an_unknown_one_is_not(
    tmp_path: Path, ages: dict[str, float] | None, age: float | None, expected: Reason | None
) -> None:
    content = card()
    if ages is not None:
        content["intended_use"]["ages"] = ages
    assert Bundle.load(write(tmp_path, content)).accepts(header(body_part_examined="HAND", age=age)) is expected


def test_ages_that_end_before_they_begin_are_refused(tmp_path: Path) -> None:
    content = card()
    content["intended_use"]["ages"] = {"from_years": 18, "to_years": 18}
    with pytest.raises(BundleError, match="to_years does not lie above from_years"):
        Bundle.load(write(tmp_path, content))


def test_calibrations_are_what_they_are_called() -> None:
    temperature = Temperature.model_validate({"parameters": {"temperature": 2.0}})
    platt = Platt.model_validate({"parameters": {"slope": 0.5, "intercept": -1.0}})
    assert temperature.probability(3.0) == pytest.approx(1 / (1 + math.exp(-1.5)))
    assert platt.probability(3.0) == pytest.approx(1 / (1 + math.exp(-0.5)))
    assert temperature.probability(1e6) == 1.0
    assert temperature.probability(-1e6) == 0.0


def test_the_shipped_bundle_is_whole_small_and_says_what_it_cannot_do() -> None:
    bundle = Bundle.load(default_bundle_path())
    assert sum(file.stat().st_size for file in bundle.path.iterdir()) <= 20_000_000
    assert bundle.path.name == f"{bundle.card.name}-{bundle.card.version}"
    assert bundle.card.intended_use.limits
    assert all(metric.low <= metric.value <= metric.high for metric in bundle.card.metrics.values.values())
    assert any("CC BY 4.0" in data.licence for data in bundle.card.training_data)
    assert [
        part for part in bundle.card.intended_use.body_parts if bundle.accepts(header(body_part_examined=part))
    ] == []
    assert bundle.accepts(header(body_part_examined="CHEST")) is Reason.OUTSIDE_INTENDED_USE


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"edges": [0, 1]}, "not one count between every two edges"),
        ({"edges": [0, 0.5, 0.9]}, "edges do not rise from 0 to 1"),
        ({"edges": [0, 1, 1]}, "edges do not rise from 0 to 1"),
        ({"findings": []}, "at least 1 item"),
        ({"findings": [{**SCORES["findings"][0], "with_finding": [0, 0]}]}, "of no images"),
        ({"findings": [{**SCORES["findings"][0], "with_finding": [-1, 4]}]}, "greater than or equal to 0"),
    ],
)
def test_a_distribution_of_scores_that_nothing_can_be_compared_with_is_refused(
    tmp_path: Path, changes: dict[str, Any], why: str
) -> None:
    with_scores = {**card(), "metrics": {**METRICS, "score_distribution": SCORES}}
    assert Bundle.load(write(tmp_path / "right", with_scores)).card.metrics.score_distribution is not None
    wrong = {**card(), "metrics": {**METRICS, "score_distribution": {**SCORES, **changes}}}
    with pytest.raises(BundleError, match=why):
        Bundle.load(write(tmp_path / "wrong", wrong))


def test_the_shipped_card_counts_the_scores_of_all_images_that_its_gate_let_pass() -> None:
    shipped = Bundle.load(default_bundle_path()).card
    spread = shipped.metrics.score_distribution
    assert spread is not None
    assert shipped.gate is not None
    (one,) = spread.findings
    passed = sum(one.with_finding) + sum(one.without_finding)
    assert passed == shipped.gate.accepted_images - shipped.gate.accepted_refused
    reached = [low for low in spread.edges[:-1] if low >= shipped.findings[0].operating_points.present_from]
    above = sum(one.with_finding[-len(reached) :]) + sum(one.without_finding[-len(reached) :])
    bin_of_the_point = one.with_finding[-len(reached) - 1] + one.without_finding[-len(reached) - 1]
    assert above <= round(one.present.value * passed) <= above + bin_of_the_point
    assert one.code == shipped.findings[0].code
