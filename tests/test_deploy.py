"""What is deployed fits what is built: commands, settings, metrics and files that are named exist."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from kithstream.streams.cli import cli
from kithstream.streams.config import Config, load
from kithstream.streams.kafka.local import VERSION

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
TOKEN = "KITHSTREAM_SERVE__TOKEN"
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: Mapping[str, Any] = COMPOSE["services"]
OURS = sorted(name for name, service in SERVICES.items() if service["image"].startswith("kithstream:"))
WORKERS = [name for name in OURS if name.startswith("worker-")]
DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
BOARD = json.loads((DEPLOY / "grafana" / "dashboards" / "kithstream.json").read_text())
RULES = yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"][0]["rules"]


def filled(text: object, given: Mapping[str, str]) -> str:
    """A value with its variables filled in as compose does; KeyError for one that must be given and is not."""

    def fill(found: re.Match[str]) -> str:
        name, kind, default = found.groups()
        if kind == ":-":
            return given.get(name) or str(default)
        return given[name]

    return re.sub(r"\$\{(\w+)(:[-?])?([^}]*)\}", fill, str(text))


def environment(name: str, **given: str) -> dict[str, str]:
    return {key: filled(value, given) for key, value in SERVICES[name]["environment"].items()}


def of_image() -> dict[str, str]:
    """The variables that the image sets."""
    last = DOCKERFILE.rpartition("FROM ")[2]
    return dict(
        pair.split("=", 1) for line in re.findall(r"^ENV (.*)$", last, re.MULTILINE) for pair in line.split()
    )


def configured(name: str) -> Config:
    return load(environment={**of_image(), **environment(name, **{TOKEN: "secret"})})


# -- compose -------------------------------------------------------------------------------------------------


def test_the_services_are_those_that_are_meant() -> None:
    assert OURS == ["topics", "trainer", "worker-1", "worker-2"]
    observing = {name for name, service in SERVICES.items() if service.get("profiles") == ["observability"]}
    assert observing == {"prometheus", "grafana"}


@pytest.mark.parametrize("name", OURS)
def test_what_a_service_runs_is_a_command(name: str) -> None:
    words: list[str] = SERVICES[name]["command"]
    command: click.Command | None = cli
    context = cli.make_context("kithstream", list(words))
    while isinstance(command, click.Group):
        called, command, words = command.resolve_command(context, words)
        assert command is not None
        context = command.make_context(called, list(words), parent=context)


@pytest.mark.parametrize("name", OURS)
def test_every_variable_is_a_setting(name: str) -> None:
    config = configured(name)  # refuses what is none
    assert config.kafka.servers == "kafka:19092"
    assert config.serve.host == "0.0.0.0"
    for key in {**of_image(), **SERVICES[name]["environment"]}:
        assert "__" in key or not key.startswith("KITHSTREAM"), key  # it would be passed over


@pytest.mark.parametrize("name", WORKERS)
def test_a_worker_is_reached_under_its_own_name_with_a_token_that_must_be_given(name: str) -> None:
    config = configured(name)
    assert config.worker.advertise == f"http://{name}:{config.serve.port}"
    assert config.serve.token == "secret"
    with pytest.raises(KeyError, match=TOKEN):
        environment(name)
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name]["ports"])


def test_workers_share_checkpoints_and_nothing_else() -> None:
    mounted = {name: dict(volume.split(":") for volume in SERVICES[name]["volumes"]) for name in WORKERS}
    (first, second) = mounted.values()
    assert first.keys() & second.keys() == {"checkpoints"}
    for name in WORKERS:
        config = configured(name)
        assert sorted(mounted[name].values()) == sorted([config.worker.data, config.worker.checkpoints])


def test_workers_and_topics_agree_on_everything_that_topics_depend_on() -> None:
    for name in WORKERS:
        worker, topics = configured(name), configured("topics")
        assert (worker.kafka, worker.engine, worker.model) == (topics.kafka, topics.engine, topics.model)


def test_a_worker_starts_when_the_topics_are_made_and_stops_when_it_has_drained() -> None:
    for name in WORKERS:
        assert SERVICES[name]["depends_on"]["topics"]["condition"] == "service_completed_successfully"
        assert int(SERVICES[name]["stop_grace_period"].removesuffix("s")) > Config().worker.drain_seconds
        assert "healthcheck" not in SERVICES[name]  # the image's
        assert SERVICES[name]["read_only"]
    assert SERVICES["topics"]["depends_on"]["kafka"]["condition"] == "service_healthy"


def test_every_mount_and_volume_exists() -> None:
    for service in SERVICES.values():
        for mount in service.get("volumes", ()):
            source = mount.split(":")[0]
            assert (ROOT / source).exists() if source.startswith(".") else source in COMPOSE["volumes"], mount
        assert set(service.get("secrets", ())) <= COMPOSE["secrets"].keys()


def test_images_have_a_version_and_kafka_is_the_one_of_the_tests() -> None:
    named = [service["image"] for service in SERVICES.values()]
    named += re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert all(re.search(r":v?\d+\.\d+", image) for image in named), named
    assert SERVICES["kafka"]["image"] == f"apache/kafka:{VERSION}"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {SERVICES[name]["image"] for name in OURS} == {f"kithstream:{project['version']}"}


# -- what a service may do -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_no_power_over_the_machine(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    given = {"cap_add", "privileged", "devices", "network_mode", "pid", "ipc", "userns_mode", "user"} & set(
        service
    )
    assert given == set()  # an image's own user is used, and ours is nobody special
    assert not any("docker.sock" in mount for mount in service.get("volumes", ()))
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


@pytest.mark.parametrize("name", sorted(SERVICES.keys() - {"kafka"}))
def test_a_service_writes_to_its_volumes_and_tmp_alone(name: str) -> None:
    """Not Kafka's: its image writes its configuration when it starts."""
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service.get("tmpfs", []) in ([], ["/tmp"])
    for mount in service.get("volumes", ()):
        source, _, rest = mount.partition(":")
        assert rest.endswith(":ro") or source in COMPOSE["volumes"], mount


@pytest.mark.parametrize("name", SERVICES)
def test_no_secret_is_written_into_the_file(name: str) -> None:
    for key, value in SERVICES[name].get("environment", {}).items():
        if re.search("token|password|secret|salt|key$", key, re.IGNORECASE):
            assert re.fullmatch(r"\$\{\w+:\?[^}]+\}", value), key  # must be given, and has no default


def test_the_image_is_given_no_secret() -> None:
    assert not re.findall(r"(?i)^(?:ARG|ENV) .*(?:token|password|secret|salt)", DOCKERFILE, re.MULTILINE)


# -- the image -----------------------------------------------------------------------------------------------


def test_the_image_runs_as_nobody_special_and_ends_when_it_is_told() -> None:
    last = DOCKERFILE.rpartition("FROM ")[2]
    (user,) = re.findall(r"^USER (\d+):\d+$", last, re.MULTILINE)
    assert int(user) > 0
    assert "\nSTOPSIGNAL SIGTERM\n" in last
    assert re.search(r"^HEALTHCHECK .*/readyz", last, re.MULTILINE)
    assert json.loads(re.findall(r"^ENTRYPOINT (.*)$", last, re.MULTILINE)[0]) == ["kithstream"]
    assert json.loads(re.findall(r"^CMD (.*)$", last, re.MULTILINE)[0]) == ["worker"]


def test_the_health_of_the_image_is_asked_by_a_program_that_compiles() -> None:
    (words,) = re.findall(r"^HEALTHCHECK .* CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
    program = json.loads(words)
    assert program[:2] == ["python", "-c"]
    compile(program[2], "healthcheck", "exec")


def test_the_image_is_made_of_what_is_pinned_and_of_no_registry_that_is_named() -> None:
    builder = DOCKERFILE.split("FROM ")[1]
    assert "HNSWLIB_NO_NATIVE=1" in builder
    assert "--constraint constraints.txt" in builder
    assert re.search(r"^ARG TORCH_INDEX=$", builder, re.MULTILINE)
    assert re.search(r"^torch==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert not re.findall(r"https?://(?!127\.0\.0\.1)", DOCKERFILE)


def test_what_is_copied_into_the_image_is_let_through() -> None:
    let = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    builder = DOCKERFILE.split("FROM ")[1]
    copied = {name for line in re.findall(r"^COPY (.*) \S+$", builder, re.MULTILINE) for name in line.split()}
    assert copied == let
    assert all((ROOT / name).exists() for name in copied)


# -- what is watched -----------------------------------------------------------------------------------------


def told() -> set[str]:
    """The names under which the code and Prometheus tell something."""
    source = "\n".join(path.read_text() for path in (ROOT / "streams").rglob("*.py"))
    names = set(re.findall(r'"(kithstream_[a-z_]+)"', source))
    return names | {name + end for name in names for end in ("_total", "_bucket", "_sum", "_count")}


def queries() -> Iterator[tuple[str, str]]:
    for rule in RULES:
        yield rule["alert"], rule["expr"]
    for panel in BOARD["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


def test_every_query_names_metrics_that_exist_and_the_job_that_is_scraped() -> None:
    (job,) = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"]
    known = told()
    for title, query in queries():
        names = re.findall(r"\b(?:kithstream_[a-z_]+|up)\b(?=\{)", query)
        assert names, title
        assert set(names) <= known | {"up"}, title
        assert len(re.findall(r"kithstream_[a-z_]+", query)) == len([n for n in names if n != "up"]), title
        assert query.count(f'job="{job["job_name"]}"') == len(names), title
        assert query.count("(") == query.count(")"), title


def test_every_worker_is_scraped_with_the_token() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    targets = [f"{name}:{configured(name).serve.port}" for name in WORKERS]
    assert job["static_configs"] == [{"targets": targets}]
    assert job["authorization"]["credentials_file"] == "/run/secrets/token"
    assert COMPOSE["secrets"]["token"]["environment"] == TOKEN
    assert all((DEPLOY / name).exists() for name in config["rule_files"])


def test_every_alert_says_what_is_wrong_and_what_to_do() -> None:
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"].keys() == {"summary", "action"}


def test_the_runbook_names_what_exists() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    names = set(re.findall(r"`(kithstream_[a-z_]+)`", page))
    assert len(names) > 20
    assert names <= told()
    alerts = {rule["alert"] for rule in RULES}
    assert set(re.findall(r"\| `([A-Z][A-Za-z]+)` \|", page)) <= alerts
    known = Config()
    for section, key in re.findall(r"`(?:-o )?([a-z]+)\.([a-z_]+)(?:=\w+)?`", page):
        if section not in ("deploy",):
            assert hasattr(getattr(known, section), key), f"{section}.{key}"


def test_the_dashboard_is_provisioned() -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert {panel["datasource"]["uid"] for panel in BOARD["panels"]} == {source["uid"]}
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "kithstream.yml").read_text())["providers"]
    mounted = dict(volume.split(":")[:2] for volume in SERVICES["grafana"]["volumes"])
    assert mounted["./deploy/grafana/dashboards"] == provider["options"]["path"]
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
    assert all(panel["description"] for panel in BOARD["panels"])
