"""Who may associate, and what they may do: one decision for each caller (PS3.8 9.3.4)."""

from __future__ import annotations

from typing import Any

import pytest

from dicom_node.policy import Admission, Rejection, admit, known_peers
from models.settings import GivenSettings, Peer

PEERS = [
    Peer(name="room", ae_title="ROOM", role="source"),
    Peer(name="er", ae_title="ER", role="source", host="10.0.0.7", check_address=True),
    Peer(name="six", ae_title="SIX", role="source", host="2001:db8::7", check_address=True),
    Peer(name="archive", ae_title="ARCHIVE", role="destination", host="10.0.0.9", port=104),
    Peer(name="pacs", ae_title="PACS", role="both", host="10.0.0.8", port=104),
]
MAY_STORE, MAY_VERIFY = Admission(may_store=True), Admission(may_store=False)


def asked(
    calling: str, *, called: str = "OSTEON", address: str = "10.1.1.1", already_open: int = 0, **listener: Any
) -> Admission | Rejection:
    settings = GivenSettings(peers=PEERS, listener={"max_associations": 3, **listener})
    return admit(settings, calling=calling, called=called, address=address, open_associations=already_open)


@pytest.mark.parametrize("calling", ["ROOM", "PACS"])
def test_a_source_may_store(calling: str) -> None:
    assert asked(calling) == MAY_STORE


def test_an_unknown_calling_ae_title_is_rejected_for_good() -> None:
    assert asked("STRANGER") is Rejection.CALLING_AE_TITLE
    assert Rejection.CALLING_AE_TITLE.value == (1, 1, 3)


def test_ae_titles_differ_by_case() -> None:
    assert asked("room") is Rejection.CALLING_AE_TITLE
    assert asked("ROOM", called="osteon") is Rejection.CALLED_AE_TITLE


def test_a_wrong_called_ae_title_is_rejected_for_good_whoever_calls() -> None:
    for calling in ("ROOM", "STRANGER"):
        assert asked(calling, called="OTHER") is Rejection.CALLED_AE_TITLE
    assert asked("STRANGER", called="OTHER", accept_unknown_callers=True) is Rejection.CALLED_AE_TITLE
    assert Rejection.CALLED_AE_TITLE.value == (1, 1, 7)


@pytest.mark.parametrize(
    ("calling", "address", "decision"),
    [
        ("ER", "10.0.0.7", MAY_STORE),
        ("ER", "::ffff:10.0.0.7", MAY_STORE),
        ("ER", "10.0.0.8", Rejection.CALLING_AE_TITLE),
        ("ER", "::ffff:10.0.0.8", Rejection.CALLING_AE_TITLE),
        ("ER", "127.0.0.1", Rejection.CALLING_AE_TITLE),
        ("SIX", "2001:db8:0:0:0:0:0:7", MAY_STORE),
        ("SIX", "2001:db8::8", Rejection.CALLING_AE_TITLE),
    ],
)
def test_a_source_whose_address_is_checked_may_call_from_there_only(
    calling: str, address: str, decision: Admission | Rejection
) -> None:
    assert asked(calling, address=address) == decision


def test_a_wrong_address_is_rejected_even_where_unknown_callers_are_accepted() -> None:
    assert asked("ER", address="10.0.0.8", accept_unknown_callers=True) is Rejection.CALLING_AE_TITLE


def test_unknown_callers_may_store_where_the_site_says_so() -> None:
    assert asked("STRANGER", accept_unknown_callers=True) == MAY_STORE


def test_a_destination_may_verify_but_not_store() -> None:
    assert asked("ARCHIVE") == MAY_VERIFY


def test_a_caller_is_each_peer_of_its_ae_title_and_at_its_address_where_that_is_checked() -> None:
    settings = GivenSettings(
        peers=[*PEERS, Peer(name="second", ae_title="ROOM", role="destination", host="10.0.0.1", port=104)]
    )

    def found(calling: str, address: str = "10.1.1.1") -> list[str]:
        return [peer.name for peer in known_peers(settings, calling=calling, address=address)]

    assert found("ROOM") == ["room", "second"]
    assert found("ARCHIVE") == ["archive"]
    assert (found("ER"), found("ER", "::ffff:10.0.0.7")) == ([], ["er"])
    assert found("STRANGER") == []


def test_more_associations_than_the_limit_are_rejected_for_now() -> None:
    assert asked("ROOM", already_open=2) == MAY_STORE
    assert asked("ROOM", already_open=3) is Rejection.TOO_MANY
    assert Rejection.TOO_MANY.value == (2, 3, 2)


def test_a_caller_that_may_never_come_in_is_not_told_to_try_again() -> None:
    assert asked("STRANGER", already_open=3) is Rejection.CALLING_AE_TITLE
    assert asked("ROOM", called="OTHER", already_open=3) is Rejection.CALLED_AE_TITLE


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"])
def test_the_nodes_own_health_check_may_verify_from_this_machine(address: str) -> None:
    assert asked("OSTEON", address=address) == MAY_VERIFY


@pytest.mark.parametrize("address", ["10.1.1.1", "::ffff:10.1.1.1", "2001:db8::1"])
def test_nobody_else_may_call_under_the_nodes_own_ae_title(address: str) -> None:
    assert asked("OSTEON", address=address) is Rejection.CALLING_AE_TITLE


@pytest.mark.parametrize("host", ["10.0.0.5", "2001:db8::5"])
def test_the_nodes_own_health_check_may_verify_from_the_address_that_the_node_is_bound_to(host: str) -> None:
    settings = GivenSettings(peers=PEERS, host=host)

    def asks(address: str) -> Admission | Rejection:
        return admit(settings, calling="OSTEON", called="OSTEON", address=address, open_associations=0)

    assert asks(host) == MAY_VERIFY
    assert asks("10.0.0.6") is Rejection.CALLING_AE_TITLE
    assert asks("2001:db8::6") is Rejection.CALLING_AE_TITLE
