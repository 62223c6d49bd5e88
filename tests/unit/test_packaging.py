"""What is locked, what the image holds, and that docker-compose.yml starts what Osteon has."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ruamel.yaml import YAML
from typer.testing import CliRunner

from console.health import Part
from console.main import app
from models.settings import CONFIG_VARIABLE, ENV_PREFIX, OpenIdSettings, Settings, WebSettings, load_settings

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ("node", "web", "train", "dev", "fuzz")


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def requirements(name: str) -> list[str]:
    """The requirements of requirements/NAME.txt, each on one line with its options."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text("utf-8").replace("\\\n", " ")
    return [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]


def locked(name: str) -> dict[str, str]:
    """The version of each package in requirements/NAME.txt."""
    pins = [Requirement(line.split(" --hash=")[0]) for line in requirements(name)]
    versions = {str(canonicalize_name(pin.name)): str(pin.specifier).removeprefix("==") for pin in pins}
    assert len(versions) == len(pins), f"{name}.txt names a package twice"
    return versions


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = YAML(typ="safe").load((ROOT / "docker-compose.yml").read_text("utf-8"))
    return loaded


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = compose()["services"]
    return found


# --- lock files ---


@pytest.mark.parametrize("path", sorted((ROOT / "requirements").iterdir()), ids=lambda path: path.name)
def test_no_file_of_the_lock_names_an_index_or_a_host(path: Path) -> None:
    text = path.read_text("utf-8")
    assert "://" not in text
    assert not re.search(r"^\s*--?(i|f|index-url|extra-index-url|find-links|trusted-host)\b", text, re.MULTILINE)


@pytest.mark.parametrize("name", LOCKS)
def test_every_locked_requirement_has_one_version_and_hashes(name: str) -> None:
    for line in requirements(name):
        assert re.fullmatch(r"[a-z0-9.\-]+==\S+( ; [^#]+?)?(\s+--hash=sha256:[0-9a-f]{64})+", line), line


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_file_agrees_with_the_common_resolution(name: str) -> None:
    assert locked(name).items() <= locked("versions").items()


@pytest.mark.parametrize("name", LOCKS)
def test_every_lock_file_holds_the_whole_node(name: str) -> None:
    assert locked("node").items() <= locked(name).items()


def test_torch_is_locked_nowhere() -> None:
    assert not [package for package in locked("versions") if package.startswith(("torch", "nvidia-"))]


@pytest.mark.parametrize("name", [name for name in LOCKS if name not in ("train", "dev")])
def test_only_training_and_its_tests_get_tensorflow(name: str) -> None:
    assert not {"tensorflow", "tensorflow-cpu", "keras"} & locked(name).keys()


def test_the_lock_files_answer_what_pyproject_asks_for() -> None:
    asked = {"node": project()["project"]["dependencies"] + project()["build-system"]["requires"]}
    asked["node"] += project()["dependency-groups"]["build"]
    asked |= {"dev": [line for line in project()["dependency-groups"]["dev"] if isinstance(line, str)]}
    for extra, lines in project()["project"]["optional-dependencies"].items():
        asked[extra] = asked.get(extra, []) + lines
    for name, lines in asked.items():
        versions = locked(name)
        for line in map(Requirement, lines):
            version = versions.get(canonicalize_name(line.name))
            assert version, f"{line} is not in {name}.txt: run `make lock`"
            assert line.specifier.contains(version), f"{name}.txt has {version}, not {line}: run `make lock`"


def test_no_package_of_a_node_is_under_the_gpl() -> None:
    assert "pylibjpeg-libjpeg" not in locked("versions")
    for package in locked("node"):
        try:
            about = metadata.metadata(package)
        except metadata.PackageNotFoundError:  # for another platform or Python
            continue
        # Some packages put the whole text of their licence there: its first line is its name.
        named = [*(about.get_all("License-Expression") or []), *(about.get_all("License") or [])]
        named = [text.strip().partition("\n")[0] for text in named]
        named += [line for line in about.get_all("Classifier") or [] if line.startswith("License ::")]
        assert not re.search(r"\bA?GPL|(?<!Lesser )General Public", " ".join(named)), f"{package}: {named}"


# --- docker-compose.yml, Dockerfile ---


def test_the_compose_file_follows_the_compose_schema() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    checked = subprocess.run(
        [*command, "docker-compose.yml"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_health_command_names_a_part_that_osteon_knows() -> None:
    tests = [service["healthcheck"]["test"] for service in services().values() if "healthcheck" in service]
    asked = {test[3] for test in tests if test[:3] == ["CMD", "osteon", "health"]}
    assert asked == {"listener", "worker", "courier", "sweeper", "web"}
    assert asked <= {part.value for part in Part}


def test_every_command_of_a_service_is_one_that_osteon_has() -> None:
    commands = [service["command"] for service in services().values() if "build" in service]
    assert ["listen"] in commands
    for command in commands:
        shown = CliRunner().invoke(app, [*command, "--help"])
        assert shown.exit_code == 0, f"osteon {' '.join(command)}: {shown.output}"


def test_every_service_that_stays_up_is_watched_and_restarted() -> None:
    for name, service in services().items():
        if name == "migrate":
            assert service["restart"] == "no"
        else:
            assert service["restart"] == "unless-stopped", name
            assert service["healthcheck"]["test"], name


def test_no_service_has_more_rights_than_it_needs() -> None:
    image_has_a_user = "\nUSER 10001\n" in (ROOT / "Dockerfile").read_text("utf-8")
    for name, service in services().items():
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory"}, name
        assert service["read_only"] or name == "orthanc", name
        assert service.get("user") or (service.get("build") and image_has_a_user), name


def test_compose_has_no_default_password_and_says_where_to_put_one() -> None:
    text = (ROOT / "docker-compose.yml").read_text("utf-8")
    example = (ROOT / "docker" / "env.example").read_text("utf-8")
    used = re.findall(r"\$\{(\w+)(:?[-?])?([^}]*)\}", text)
    assert used
    for variable, operator, rest in used:
        assert re.search(rf"^#?{variable}=", example, re.MULTILINE), f"{variable} is not in docker/env.example"
        if "PASSWORD" in variable and variable != "OSTEON_DEMO_PACS_PASSWORD":
            assert operator == ":?", variable
            assert "docker/env.example" in rest, variable
    assert ("OSTEON_DEMO_PACS_PASSWORD", ":-", "") in used
    assert not re.search(r"^\w*PASSWORD=.", example, re.MULTILINE)


def test_compose_sets_only_what_the_settings_know() -> None:
    known = {ENV_PREFIX + key.upper() for key in Settings.model_fields} | {CONFIG_VARIABLE}
    for name, service in services().items():
        given = {variable for variable in service.get("environment", {}) if variable.startswith(ENV_PREFIX)}
        assert given <= known, name


def test_only_migrate_has_the_password_of_the_tables_owner() -> None:
    holders = [name for name, service in services().items() if "OSTEON_DB_OWNER_PASSWORD" in str(service)]
    assert sorted(holders) == ["migrate", "postgres"]


def test_the_settings_file_of_the_containers_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CONFIG_VARIABLE, str(ROOT / "docker" / "osteon.toml"))
    settings = load_settings()
    orthanc = services()["orthanc"]["environment"]
    (pacs,) = settings.destinations
    assert (pacs.host, pacs.ae_title, str(pacs.port)) == (
        "orthanc",
        orthanc["ORTHANC__DICOM_AET"],
        orthanc["ORTHANC__DICOM_PORT"],
    )
    assert f'["{settings.ae_title}", "listener", {settings.port}]' in orthanc["ORTHANC__DICOM_MODALITIES"]


def test_the_console_is_in_the_image_and_published_on_this_host_alone() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text("utf-8")
    assert "--require-hashes -r requirements/web.txt" in dockerfile
    assert "!requirements/web.txt" in (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    (port,) = services()["web"]["ports"]
    inside = tomllib.loads((ROOT / "docker" / "osteon.toml").read_text("utf-8"))["web"]
    assert port == f"${{OSTEON_WEB:-127.0.0.1:{WebSettings().port}}}:{WebSettings().port}"
    assert inside == {"host": "0.0.0.0"}
    # A network that leads nowhere publishes no port.
    assert set(services()["web"]["networks"]) - {"inside"}


def test_the_example_of_a_provider_in_the_containers_settings_is_valid() -> None:
    text = (ROOT / "docker" / "osteon.toml").read_text("utf-8")
    section = text[text.index("#[web.oidc]") :].partition("\n\n")[0]
    provider = OpenIdSettings(**tomllib.loads(section.replace("\n#", "\n").lstrip("#"))["web"]["oidc"])
    assert provider.client_secret_file == Path("/run/secrets") / next(iter(services()["web"]["secrets"]))


def test_the_image_is_tagged_with_the_version_of_the_project() -> None:
    own = {service["image"] for service in services().values() if "build" in service}
    assert own == {f"osteon:{project()['project']['version']}"}


def test_the_image_is_built_from_every_room_that_the_wheel_holds() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text("utf-8")
    let_in = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    for room in project()["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]:
        assert f"\nCOPY {room} {room}\n" in dockerfile
        assert f"!{room}" in let_in
