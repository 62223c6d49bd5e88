"""Settings: what is in force, what is a mistake and how it is named, and that secrets are never shown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from console.main import run
from models.settings import (
    GivenSettings,
    Mistake,
    Peer,
    RetentionSettings,
    Settings,
    SettingsMistakes,
    environment_of,
    hide_password,
    load_settings,
)

SECRET = "s3cr3t-of-the-node"
Write = Callable[[str], Path]


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("OSTEON_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write the settings file of the working folder."""

    def write(text: str) -> Path:
        path = tmp_path / "osteon.toml"
        path.write_text(text, "utf-8")
        return path

    return write


def mistakes() -> list[Mistake]:
    with pytest.raises(SettingsMistakes) as error:
        load_settings()
    assert SECRET not in str(error.value) + repr(error.value)
    return error.value.mistakes


def only_mistake() -> Mistake:
    (mistake,) = mistakes()
    return mistake


def osteon(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["osteon", *arguments])
    with pytest.raises(SystemExit) as ended:
        run()
    return int(ended.value.code or 0)


# --- what is in force ---------------------------------------------------------------------------------------------


def test_without_a_file_and_variables_the_defaults_are_in_force() -> None:
    settings = load_settings()
    assert (settings.ae_title, settings.host, settings.port) == ("OSTEON", "127.0.0.1", 11112)
    assert settings.study.quiet_time == 60
    assert settings.study.max_wait == 900
    assert settings.database_url is None
    assert settings.broker_url is None
    assert settings.peers == []
    assert not settings.listener.accept_unknown_callers


def test_the_file_overrides_the_defaults_and_the_environment_overrides_the_file(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write('ae_title = "FROMFILE"\nport = 4242\n')
    monkeypatch.setenv("OSTEON_PORT", "4343")
    settings = load_settings()
    assert (settings.ae_title, settings.port) == ("FROMFILE", 4343)


def test_one_nested_variable_leaves_the_rest_of_its_table_as_the_file_has_it(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("[listener]\nmax_associations = 7\nidle_timeout = 5\n")
    monkeypatch.setenv("OSTEON_LISTENER__MAX_ASSOCIATIONS", "9")
    listener = load_settings().listener
    assert (listener.max_associations, listener.idle_timeout, listener.association_timeout) == (9, 5, 15)


def test_peers_may_come_from_the_environment_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSTEON_PEERS", json.dumps([{"name": "room-1", "ae_title": "ROOM1", "role": "source"}]))
    assert [peer.ae_title for peer in load_settings().sources] == ["ROOM1"]


def test_the_file_that_osteon_config_names_goes_before_the_one_in_the_working_folder(
    write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write('ae_title = "HERE"\n')
    named = tmp_path / "named.toml"
    named.write_text('ae_title = "NAMED"\n')
    monkeypatch.setenv("OSTEON_CONFIG", str(named))
    assert load_settings().ae_title == "NAMED"


def test_given_settings_ask_neither_the_file_nor_the_environment(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write('ae_title = "FROMFILE"\n')
    monkeypatch.setenv("OSTEON_PORT", "4343")
    settings = GivenSettings(host="0.0.0.0")
    assert (settings.ae_title, settings.port, settings.host) == ("OSTEON", 11112, "0.0.0.0")


def test_settings_cannot_be_changed_once_they_are_read() -> None:
    with pytest.raises(ValidationError):
        load_settings().port = 1


def test_quiet_time_and_priority_are_those_of_the_peer_that_sends() -> None:
    peers = [
        Peer(name="er", ae_title="ER", role="source", priority="urgent", quiet_time=5),
        Peer(name="ward", ae_title="WARD", role="source"),
        Peer(name="pacs", ae_title="PACS", role="destination", host="pacs", port=104, priority="urgent"),
    ]
    settings = GivenSettings(peers=peers)
    assert [settings.quiet_time_of(title) for title in ("ER", "WARD", "PACS", "STRANGER")] == [5, 60, 60, 60]
    assert [settings.is_urgent(title) for title in ("ER", "WARD", "PACS", "STRANGER")] == [True, False, False, False]


def test_another_process_gets_exactly_these_settings_from_its_environment(tmp_path: Path) -> None:
    (tmp_path / "osteon.toml").write_text('ae_title = "NOTTHIS"\nnonsense = 1\n')
    given = GivenSettings(
        ae_title="MY NODE",
        port=1234,
        data_dir=tmp_path / "data with spaces",
        database_url=SecretStr(f"postgresql+psycopg://osteon:{SECRET}@db/osteon"),
        broker_url=SecretStr(f"redis://:{SECRET}@valkey/0"),
        study={"quiet_time": 0.25},
        listener={"also_accept": ["1.2.3"]},
        report={"series_description": "Älter “als” 1 Tag"},
        peers=[
            Peer(name="pacs", ae_title="PACS", host="::1", port=104, quiet_time=1),
            Peer(name="web", protocol="dicomweb", role="destination", url="http://pacs/dicom-web"),
            Peer(name="ris", protocol="hl7", role="destination", host="ris", port=2575, receiving_facility="Häuser"),
        ],
    )
    code = (
        "from models.settings import load_settings; s = load_settings(); print(s.model_dump_json());"
        "print(s.database_url.get_secret_value(), s.broker_url.get_secret_value(), s.database_owner_url)"
    )
    root = str(Path(__file__).parents[2])
    answer = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment_of(given), "PYTHONPATH": root},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    plain, urls = answer.stdout.splitlines()
    assert json.loads(plain) == given.model_dump(mode="json")
    assert urls == f"postgresql+psycopg://osteon:{SECRET}@db/osteon redis://:{SECRET}@valkey/0 None"


# --- mistakes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "key", "among"),
    [
        ("quiet = 3\n", "quiet", "ae_title, host, port"),
        ("[study]\nquiettime = 3\n", "study.quiettime", "quiet_time, max_wait"),
        ('[[peers]]\nname = "a"\nae_title = "A"\nrole = "source"\ncolour = 1\n', "peers.0.colour", "name, ae_title"),
    ],
)
def test_an_unknown_key_is_a_mistake_that_says_which_keys_there_are(
    write: Write, text: str, key: str, among: str
) -> None:
    write(text)
    mistake = only_mistake()
    assert (mistake.key, mistake.found) == (key, "an unknown key")
    assert among in mistake.allowed


@pytest.mark.parametrize("name", ["OSTEON_QUIET_TIME", "OSTEON_STUDY_QUIET_TIME", "OSTEON_STDY__QUIET_TIME"])
def test_an_unknown_variable_is_a_mistake(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, SECRET)
    mistake = only_mistake()
    assert mistake.key == name
    assert "OSTEON_STUDY" in mistake.allowed


def test_an_unknown_nested_variable_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSTEON_STUDY__QUIET", "3")
    assert only_mistake() == Mistake(
        "study.quiet",
        "an unknown key",
        "one of quiet_time, max_wait, urgent_head_start, trust_header_priority, warn_after",
    )


@pytest.mark.parametrize(
    ("variable", "value", "key", "allowed"),
    [
        ("OSTEON_PORT", "70000", "port", "65535"),
        ("OSTEON_PORT", "dicom", "port", "integer"),
        ("OSTEON_AE_TITLE", "SEVENTEEN-LETTERS", "ae_title", "1 to 16"),
        ("OSTEON_AE_TITLE", "BACK\\SLASH", "ae_title", "no backslash"),
        ("OSTEON_STUDY__QUIET_TIME", "0", "study.quiet_time", "greater than 0"),
        ("OSTEON_LOG_LEVEL", "loud", "log_level", "'debug', 'info'"),
    ],
)
def test_a_wrong_value_is_named_with_its_key_the_value_found_and_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, key: str, allowed: str
) -> None:
    monkeypatch.setenv(variable, value)
    mistake = only_mistake()
    assert (mistake.key, mistake.found) == (key, repr(value))
    assert allowed in mistake.allowed


def test_every_mistake_is_named_at_once(write: Write) -> None:
    write('port = 0\nae_title = ""\n[delivery]\nmax_tries = 0\n[report]\nseries_number = 0\n')
    assert {mistake.key for mistake in mistakes()} == {
        "port",
        "ae_title",
        "delivery.max_tries",
        "report.series_number",
    }


def test_a_list_that_is_not_json_is_a_mistake_that_does_not_show_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSTEON_PEERS", SECRET)
    mistake = only_mistake()
    assert (mistake.key, mistake.allowed) == ("OSTEON_PEERS", "a JSON list or object")


@pytest.mark.parametrize("text", ["port = \n", "[listener\n", 'ae_title = "A"\nae_title = "B"\n'])
def test_a_file_that_is_no_toml_is_a_mistake_that_says_where(write: Write, text: str) -> None:
    path = write(text)
    mistake = only_mistake()
    assert mistake.key == str(path.relative_to(Path.cwd()))
    assert "line" in mistake.found


def test_a_file_that_is_not_utf_8_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "osteon.toml").write_bytes(b'ae_title = "\xff"\n')
    assert only_mistake().allowed == "a readable TOML file in UTF-8"


def test_a_named_file_that_is_missing_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSTEON_CONFIG", "/nowhere/osteon.toml")
    assert (only_mistake().key, only_mistake().found) == ("OSTEON_CONFIG", "/nowhere/osteon.toml")


WEB = 'name = "a"\nprotocol = "dicomweb"\nurl = "http://pacs.example/dicom-web"'
RIS = 'name = "a"\nprotocol = "hl7"\nrole = "destination"\nhost = "x"\nport = 2575'
SECURED, OTHER_RIS = WEB.replace("http:", "https:"), RIS.replace('"a"', '"b"')


@pytest.mark.parametrize(
    ("peer", "allowed"),
    [
        ('name = "a"\nae_title = "A"\nrole = "destination"\nhost = "x"', "host and port"),
        ('name = "a"\nae_title = "A"', "host and port"),
        ('name = "a"\nae_title = "A"\nrole = "source"\ncheck_address = true', "check_address needs host"),
        (
            'name = "a"\nae_title = "A"\nrole = "source"\ncheck_address = true\nhost = "ct.example"',
            "an IP address, not a name",
        ),
        ('name = "a"\nae_title = "A"\nrole = "source"\ncommitment = true', "destination or both"),
        ('name = "a"\nae_title = "A"\nrole = "source"\nprovide_commitment = true', "host and port"),
        (
            'name = "a"\nae_title = "A"\nrole = "destination"\nhost = "x"\nport = 1\nprovide_commitment = true',
            "source or both",
        ),
        ('name = "with space"\nae_title = "A"\nrole = "source"', "pattern"),
        ('ae_title = "A"\nrole = "source"', "required"),
        ('name = "a"\nae_title = "A"\nrole = "sender"', "'source', 'destination' or 'both'"),
        ('name = "a"\nhost = "x"\nport = 1\nrole = "destination"', "ae_title is needed where the protocol is dimse"),
        (f'{WEB}\nrole = "both"', "the role is destination"),
        (f'{WEB}\nae_title = "A"\nrole = "source"', "how results go there"),
        (f'{WEB}\nrole = "destination"\ncommitment = true', "services of DIMSE"),
        ('name = "a"\nprotocol = "dicomweb"\nrole = "destination"', "needs url"),
        (f'{WEB}\nrole = "destination"\nuser = "osteon"', "belong together"),
        (f'{WEB}\nrole = "destination"\npassword_file = "p"', "belong together"),
        (f'{WEB}\nrole = "destination"\nuser = "u"\npassword_file = "p"\ntoken_file = "t"', "not by both"),
        (f'{WEB}\nrole = "destination"\ntoken_file = "t"', "https only"),
        (f'{WEB}\nrole = "destination"\ntls = true', "begins with https"),
        (f'{WEB}\nrole = "destination"\ncertificate_name = "x"', "a url with https"),
        (f'{WEB}\nrole = "destination"\nreceiving_facility = "x"', "protocol = hl7"),
        ('name = "a"\nprotocol = "hl7"\nrole = "destination"\nhost = "x"', "needs host and port"),
        (f'{RIS}\nurl = "http://x/"', "protocol = dicomweb"),
        (f'{RIS}\nreceiving_application = "a\\nb"', "printable"),
        ('name = "a"\nae_title = "A"\nrole = "destination"\nhost = "x"\nport = 1\nca = "ca.pem"', "tls.ca"),
        ('name = "a"\nae_title = "A"\nrole = "destination"\nhost = "x"\nport = 1\nsilent_after = 2', "of a source"),
        ('name = "a"\nae_title = "A"\nrole = "source"\nsilent_after = 0', "greater than 0"),
    ],
)
def test_a_peer_that_cannot_work_is_a_mistake(write: Write, peer: str, allowed: str) -> None:
    write(f"[[peers]]\n{peer}\n")
    mistake = only_mistake()
    assert mistake.key.startswith("peers.0")
    assert allowed in mistake.allowed


@pytest.mark.parametrize(
    "url",
    [
        f"https://osteon:{SECRET}@pacs/dicom-web",
        f"https://pacs/dicom-web?token={SECRET}",
        "ftp://pacs/dicom-web",
        "HTTPS://pacs/dicom-web",
        "https:///dicom-web",
        "pacs.example",
        "http://pacs:port/",
        "http://pa cs/\u00e4",
    ],
)
def test_what_is_no_url_of_a_service_or_holds_a_secret_is_a_mistake_that_does_not_show_it(
    write: Write, url: str
) -> None:
    write(f'[[peers]]\nname = "a"\nprotocol = "dicomweb"\nrole = "destination"\nurl = "{url}"\n')
    mistake = only_mistake()
    assert (mistake.key, mistake.found) == ("peers.0.url", "(hidden)")
    assert "without user, password and query" in mistake.allowed


def test_results_may_go_by_another_protocol_to_who_sends_by_dimse_and_with_credentials_of_their_own(
    write: Write,
) -> None:
    write(
        'tls = { ca = "ca.pem", port = 2762, certificate = "c.pem", private_key = "c.key" }\n'
        f'[[peers]]\n{SECURED}\nae_title = "PACS"\ntoken_file = "/run/secrets/token"\n'
        f'[[peers]]\n{OTHER_RIS}\ntls = true\nca = "their-ca.pem"\n'
    )
    web, ris = load_settings().destinations
    assert web.is_source
    assert web.is_secured
    assert not web.tls
    assert ris.is_secured
    assert not ris.is_source
    assert [peer.ae_title for peer in load_settings().sources] == ["PACS"]


@pytest.mark.parametrize("peer", [f'{SECURED}\nrole = "destination"', f"{RIS}\ntls = true"], ids=["dicomweb", "hl7"])
def test_tls_towards_a_destination_needs_cas_of_its_own_or_those_of_the_node(write: Write, peer: str) -> None:
    write(f"[[peers]]\n{peer}\n")
    assert "needs tls.ca, or ca of its own" in only_mistake().allowed
    write(f'[[peers]]\n{peer}\nca = "their-ca.pem"\n')
    assert load_settings().destinations[0].is_secured


def test_a_node_does_not_promise_senders_to_keep_what_retention_removes() -> None:
    sender = Peer(name="a", ae_title="A", role="source", host="x", port=104, provide_commitment=True)
    GivenSettings(peers=[sender])
    removing = RetentionSettings(days=30)
    GivenSettings(peers=[sender.model_copy(update={"provide_commitment": False})], retention=removing)
    with pytest.raises(ValidationError, match="promises to keep what retention"):
        GivenSettings(peers=[sender], retention=removing)


def test_two_peers_may_not_share_a_name_nor_two_sources_an_ae_title() -> None:
    first = Peer(name="a", ae_title="A", role="source")
    with pytest.raises(ValidationError, match="name of its own"):
        GivenSettings(peers=[first, Peer(name="a", ae_title="B", role="source")])
    with pytest.raises(ValidationError, match="AE title of its own"):
        GivenSettings(peers=[first, Peer(name="b", ae_title="A", role="source")])
    # A system that sends under one title and receives under it elsewhere is two peers.
    GivenSettings(peers=[first, Peer(name="b", ae_title="A", role="destination", host="pacs", port=104)])


@pytest.mark.parametrize(
    "url",
    [
        SECRET,
        f"mysql://osteon:{SECRET}@db/osteon",
        f"postgresql://osteon:{SECRET}@db/osteon",  # a driver that is not installed
        f"postgresql+psycopg://osteon:{SECRET}@db:port/osteon",
    ],
)
@pytest.mark.parametrize("key", ["database_url", "database_owner_url"])
def test_a_database_url_that_cannot_work_is_a_mistake_that_does_not_show_it(write: Write, key: str, url: str) -> None:
    write(f'{key} = "{url}"\n')
    mistake = only_mistake()
    assert (mistake.key, mistake.found) == (key, "(hidden)")
    assert "postgresql+psycopg://" in mistake.allowed


@pytest.mark.parametrize("url", [SECRET, f"amqp://:{SECRET}@mq", f"redis://:{SECRET}/x@valkey:6379/0", "redis://[::1"])
def test_a_broker_url_that_cannot_work_is_a_mistake_that_does_not_show_it(write: Write, url: str) -> None:
    write(f'broker_url = "{url}"\n')
    assert (only_mistake().key, only_mistake().found) == ("broker_url", "(hidden)")


def test_a_url_under_the_wrong_key_is_shown_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSTEON_PORT", f"redis://:{SECRET}@valkey:6379/0")
    assert only_mistake().found == "'redis://:***@valkey:6379/0'"


# --- secrets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"redis://:{SECRET}@valkey:6379/0", "redis://:***@valkey:6379/0"),
        (
            f"postgresql+psycopg://osteon:{SECRET}@[::1]:5432/osteon",
            "postgresql+psycopg://osteon:***@[::1]:5432/osteon",
        ),
        (f"redis://:{SECRET}@{SECRET}/{SECRET}@valkey/0", "redis://:***@valkey/0"),
        (f"postgresql+psycopg:///osteon?user=o&password={SECRET}", "postgresql+psycopg:///osteon?user=o&password=***"),
        (f"postgresql+psycopg:///o?sslPassword={SECRET}&x=1", "postgresql+psycopg:///o?sslPassword=***&x=1"),
        ("redis+socket:///run/valkey.sock", "redis+socket:///run/valkey.sock"),
        ("redis://user@valkey:6379/0", "redis://user@valkey:6379/0"),
        ("redis://valkey:6379/0", "redis://valkey:6379/0"),
    ],
)
def test_a_password_in_a_url_is_hidden_and_the_rest_is_shown(url: str, shown: str) -> None:
    assert hide_password(url) == shown


def test_settings_do_not_show_their_secrets_when_they_are_printed() -> None:
    url = SecretStr(f"postgresql+psycopg://osteon:{SECRET}@db/osteon")
    settings: Settings = GivenSettings(database_url=url, broker_url=SecretStr(f"redis://:{SECRET}@valkey/0"))
    assert SECRET not in f"{settings} {settings!r} {settings.model_dump()} {settings.model_dump_json()}"


def test_settings_check_prints_what_is_in_force_without_secrets(
    write: Write, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write(
        f'database_url = "postgresql+psycopg://osteon:{SECRET}@db/osteon?password={SECRET}"\n'
        f'database_owner_url = "postgresql+psycopg://owner:{SECRET}@db/osteon"\n'
        f'broker_url = "redis://:{SECRET}@valkey/0"\n'
        '[[peers]]\nname = "pacs"\nae_title = "PACS"\nhost = "pacs.example"\nport = 104\n'
    )
    assert osteon(monkeypatch, "settings", "check", "--json") == 0
    shown = capfd.readouterr()
    assert osteon(monkeypatch, "settings", "check") == 0
    table = capfd.readouterr()
    assert SECRET not in shown.out + shown.err + table.out + table.err
    in_force = json.loads(shown.out)
    assert in_force["database_url"] == "postgresql+psycopg://osteon:***@db/osteon?password=***"
    assert in_force["database_owner_url"] == "postgresql+psycopg://owner:***@db/osteon"
    assert in_force["broker_url"] == "redis://:***@valkey/0"
    assert in_force["peers"][0]["host"] == "pacs.example"
    assert set(in_force) == set(Settings.model_fields)
    assert "osteon.toml" in table.out
    assert "pacs.example" in table.out


def test_settings_check_names_the_mistakes_and_ends_with_status_2(
    write: Write, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write(f'port = 0\n[study]\nquiet = 1\n[broker_url]\nx = "{SECRET}"\n')
    assert osteon(monkeypatch, "settings", "check") == 2
    shown = capfd.readouterr()
    assert SECRET not in shown.out + shown.err
    assert "3 mistakes in the settings" in shown.err
    for words in ("port", "study.quiet", "broker_url", "(hidden)", "greater than or equal to 1"):
        assert words in shown.err
    assert "Traceback" not in shown.err


@pytest.mark.parametrize(
    "term",
    [
        *("ISO_IR 144", "ISO_IR 13", "ISO_IR 100", "ISO_IR 192", "GB18030", "GBK", "ISO 2022 IR 100"),
        *(r"\ISO 2022 IR 87", r"ISO 2022 IR 13\ISO 2022 IR 87\ISO 2022 IR 159", r"\ISO 2022 IR 149"),
    ],
)
def test_a_default_charset_is_one_or_more_defined_terms(term: str) -> None:
    assert Peer(name="x", ae_title="X", role="source", default_charset=term).default_charset == term


@pytest.mark.parametrize(
    "term",
    [
        "",
        "\\",
        "latin-1",
        "ISO_IR 999",
        "iso_ir 100",
        r"ISO_IR 100\ISO 2022 IR 87",
        r"\GB18030",
        r"\ISO_IR 87",
        "utf-8",
    ],
)
def test_a_default_charset_that_is_no_defined_term_is_refused(term: str) -> None:
    with pytest.raises(ValidationError, match="a character set is written as"):
        Peer(name="x", ae_title="X", role="source", default_charset=term)


PROVIDER = """
[web.oidc]
name = "St. Elsewhere"
issuer = "https://login.example.org"
client_id = "osteon"
client_secret_file = "/run/secrets/oidc"
console_url = "https://osteon.example.org/"
roles = { radiologists = ["reviewer"] }
"""


def test_an_openid_provider_is_named_in_the_file_and_overridden_by_the_environment(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(PROVIDER)
    monkeypatch.setenv("OSTEON_WEB__OIDC__CLIENT_ID", "another")
    oidc = load_settings().web.oidc
    assert oidc is not None
    assert (oidc.client_id, oidc.console_url, oidc.roles) == (
        "another",
        "https://osteon.example.org",
        {"radiologists": ["reviewer"]},
    )
    for name, value in environment_of(load_settings()).items():
        monkeypatch.setenv(name, value)
    assert load_settings().web.oidc == oidc


def test_a_secret_among_the_settings_of_a_provider_is_a_mistake_and_not_shown(write: Write) -> None:
    write(PROVIDER.replace("name =", f'client_secret = "{SECRET}"\nname ='))
    mistake = only_mistake()
    assert (mistake.key, mistake.found) == ("web.oidc.client_secret", "an unknown key")
    assert "client_secret_file" in mistake.allowed
