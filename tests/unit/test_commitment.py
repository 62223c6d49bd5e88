"""Storage commitment's messages: what is said is understood, and what is hostile is refused without a word of it."""

from __future__ import annotations

import warnings
from io import BytesIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pynetdicom.dsutils import decode, encode

from dicom_node.commitment import (
    ALL_COMMITTED,
    MOST_INSTANCES,
    SOME_FAILED,
    Answer,
    Failure,
    FailureReason,
    Instance,
    Malformed,
    Request,
    Status,
    build_action,
    build_event,
    parse_action,
    parse_event,
)

CR = "1.2.840.10008.5.1.4.1.1.1"
ONE, TWO, THREE = (Instance(CR, f"1.2.3.{number}") for number in range(1, 4))
TRANSACTION = "2.25.4711"
PLANTED = "Planted^Person"
uids = st.lists(st.integers(0, 10**9), min_size=2, max_size=6).map(lambda parts: ".".join(map(str, parts)))
instances = st.builds(Instance, uids, uids)
several = st.lists(instances, min_size=1, max_size=4, unique_by=lambda instance: instance.sop_instance_uid)


def sent(dataset: Dataset, *, implicit: bool) -> Dataset:
    """The data set as it comes out of an association."""
    encoded = encode(dataset, implicit, True)
    assert encoded is not None
    return decode(BytesIO(encoded), implicit, True)


def refused(dataset: Dataset) -> Status:
    with pytest.raises(Malformed) as error:
        parse_action(dataset)
    assert PLANTED not in str(error.value)
    assert error.value.__cause__ is None
    assert error.value.__suppress_context__ or error.value.__context__ is None
    return error.value.status


def refused_event(event_type: int | None, dataset: Dataset) -> Status:
    with pytest.raises(Malformed) as error:
        parse_event(event_type, dataset)
    return error.value.status


@settings(max_examples=25, deadline=None)
@given(st.builds(Request, uids, several.map(tuple)), st.booleans())
def test_a_request_is_understood_as_it_was_meant_in_both_transfer_syntaxes(asked: Request, implicit: bool) -> None:
    assert parse_action(sent(build_action(asked), implicit=implicit)) == asked


@settings(max_examples=25, deadline=None)
@given(uids, several, st.lists(st.sampled_from(FailureReason), max_size=4), st.booleans())
def test_an_answer_is_understood_as_it_was_meant_in_both_transfer_syntaxes(
    transaction: str, named: list[Instance], reasons: list[FailureReason], implicit: bool
) -> None:
    failed = tuple(Failure(instance, reason) for instance, reason in zip(named, reasons, strict=False))
    answer = Answer(transaction, tuple(named[len(failed) :]), failed)
    event_type, information = build_event(answer)
    assert event_type == (SOME_FAILED if failed else ALL_COMMITTED)
    assert parse_event(event_type, sent(information, implicit=implicit)) == answer


def test_an_answer_of_nothing_but_failures_names_no_committed_instance() -> None:
    event_type, information = build_event(Answer(TRANSACTION, (), (Failure(ONE, 0x0112),)))
    assert event_type == SOME_FAILED
    assert "ReferencedSOPSequence" not in information
    assert information.FailedSOPSequence[0].FailureReason == 0x0112


def test_an_instance_that_is_named_twice_is_one() -> None:
    assert parse_action(build_action(Request(TRANSACTION, (ONE, TWO, ONE)))).instances == (ONE, TWO)


def test_an_instance_that_is_both_committed_and_failed_has_failed() -> None:
    _, information = build_event(Answer(TRANSACTION, (ONE, TWO), (Failure(TWO, 0x0110),)))
    assert parse_event(SOME_FAILED, information) == Answer(TRANSACTION, (ONE,), (Failure(TWO, 0x0110),))


@pytest.mark.parametrize("sent_reason", [None, b"", b"\x12\x01\x00\x00", b"\0\0"])
def test_a_failure_without_a_reason_that_can_be_read_is_a_processing_failure(sent_reason: bytes | None) -> None:
    _, information = build_event(Answer(TRANSACTION, (ONE,), (Failure(TWO, 0x0112),)))
    item = information.FailedSOPSequence[0]
    del item.FailureReason
    if sent_reason is not None:
        item.add_new("FailureReason", "OB", sent_reason)
    (failure,) = parse_event(SOME_FAILED, sent(information, implicit=False)).failed
    assert failure.reason == FailureReason.PROCESSING_FAILURE


def without(keyword: str) -> Dataset:
    dataset = build_action(Request(TRANSACTION, (ONE,)))
    delattr(dataset, keyword)
    return dataset


def with_raw(keyword: str, vr: str, value: bytes) -> Dataset:
    """A request with an element of whatever bytes."""
    dataset = without(keyword)
    dataset.add_new(keyword, vr, value)
    return sent(dataset, implicit=False)


@pytest.mark.parametrize("keyword", ["TransactionUID", "ReferencedSOPSequence"])
def test_a_request_without_what_makes_it_one_is_refused(keyword: str) -> None:
    assert refused(without(keyword)) is Status.INVALID_ARGUMENT_VALUE
    assert refused(sent(without(keyword), implicit=True)) is Status.INVALID_ARGUMENT_VALUE
    assert refused(Dataset()) is Status.INVALID_ARGUMENT_VALUE


def test_a_request_that_names_nothing_is_refused() -> None:
    dataset = without("ReferencedSOPSequence")
    dataset.ReferencedSOPSequence = Sequence()
    assert refused(dataset) is Status.INVALID_ARGUMENT_VALUE
    dataset.ReferencedSOPSequence = Sequence([Dataset()])
    assert refused(dataset) is Status.INVALID_ARGUMENT_VALUE


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"Planted^Person",
        b"1.2.3\\4.5.6",
        b"1..2",
        b"." * 8,
        b"1." * 40 + b"1.",
        b"1.2\n3 ",
        b"\xff\xfe\xfd\xfc",
        b"\xd9\xa1.\xd9\xa2 ",
    ],
)
def test_what_is_no_uid_is_refused(value: bytes) -> None:
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        assert refused(with_raw("TransactionUID", "OB", value)) in (
            Status.INVALID_ARGUMENT_VALUE,
            Status.MISTYPED_ARGUMENT,
        )
    assert [str(warning.message) for warning in warned if PLANTED in str(warning.message)] == []


@pytest.mark.parametrize(("vr", "value"), [("LO", b"Planted^Person"), ("OB", b"\0" * 9)])
def test_a_sequence_that_is_none_is_refused(vr: str, value: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        status = refused(with_raw("ReferencedSOPSequence", vr, value))
    assert status in (Status.INVALID_ARGUMENT_VALUE, Status.MISTYPED_ARGUMENT)


def test_a_request_of_more_instances_than_the_limit_is_refused_and_one_of_as_many_is_not() -> None:
    item = build_action(Request(TRANSACTION, (ONE,))).ReferencedSOPSequence[0]
    dataset = without("ReferencedSOPSequence")
    dataset.ReferencedSOPSequence = Sequence([item] * MOST_INSTANCES)
    assert parse_action(dataset).instances == (ONE,)
    dataset.ReferencedSOPSequence = Sequence([item] * (MOST_INSTANCES + 1))
    assert refused(dataset) is Status.RESOURCE_LIMITATION


def test_a_request_with_sequences_as_deep_as_it_likes_is_refused_or_understood() -> None:
    inner = build_action(Request(TRANSACTION, (ONE,)))
    for _ in range(400):
        outer = Dataset()
        outer.ReferencedSOPSequence = Sequence([inner])
        inner = outer
    inner.TransactionUID = TRANSACTION
    assert refused(inner) is Status.INVALID_ARGUMENT_VALUE


def test_an_answer_of_another_event_type_is_refused_as_such() -> None:
    _, information = build_event(Answer(TRANSACTION, (ONE,)))
    for event_type in (None, 0, 3):
        assert refused_event(event_type, information) is Status.NO_SUCH_EVENT_TYPE


def test_an_answer_that_contradicts_its_event_type_is_refused() -> None:
    _, failed = build_event(Answer(TRANSACTION, (ONE,), (Failure(TWO, 0x0112),)))
    assert refused_event(ALL_COMMITTED, failed) is Status.INVALID_ARGUMENT_VALUE
    _, committed = build_event(Answer(TRANSACTION, (ONE,)))
    assert refused_event(SOME_FAILED, committed) is Status.INVALID_ARGUMENT_VALUE


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=80), st.integers(0, 200), st.booleans(), st.booleans())
def test_whatever_bytes_come_they_are_understood_or_refused_and_nothing_else_happens(
    garbage: bytes, at: int, implicit: bool, as_event: bool
) -> None:
    event_type, information = build_event(Answer(TRANSACTION, (ONE,), (Failure(TWO, 0x0112), Failure(THREE, 0x0110))))
    content = encode(information, implicit, True)
    assert content is not None
    mixed = content[:at] + garbage + content[at + len(garbage) :]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dataset = decode(BytesIO(mixed), implicit, True)
        except Exception:
            return  # `_action_of` and `_event_of` decode where `Malformed` is made of it
        try:
            if as_event:
                parse_event(event_type, dataset)
            else:
                parse_action(dataset)
        except Malformed:
            return
