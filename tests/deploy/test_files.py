"""What deploy/ holds, checked as far as that goes without a container engine: schemas, names, what each promises."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from dockerfile_parse import DockerfileParser

from broker.cli.init import write_skeleton
from broker.config import Config
from broker.registry import load
from broker.rules import vocabulary
from deploy.cluster import BROKERS, nginx_configuration
from policies.bundle import load_directory

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
FILES = sorted(path for path in DEPLOY.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
KUBERNETES: list[dict[str, Any]] = list(yaml.safe_load_all((DEPLOY / "kubernetes/taskpass.yaml").read_text()))
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose/compose.yaml").read_text())
UNIT = (DEPLOY / "systemd/taskpass.service").read_text()
NGINX = (DEPLOY / "nginx/nginx.conf").read_text()


def kinds(*names: str) -> list[dict[str, Any]]:
    return [document for document in KUBERNETES if document["kind"] in names]


def known(variable: str) -> bool:
    """Whether the configuration has a key for this variable."""
    section, _, key = variable.removeprefix("TASKPASS_").lower().partition("__")
    if variable == "TASKPASS_CONFIG":
        return True
    field = Config.model_fields.get(section)
    return field is not None and (not key or key in getattr(field.annotation, "model_fields", {}))


# --- All of them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(DEPLOY)))
def test_no_file_names_a_host_to_fetch_from_or_holds_a_secret(path: Path) -> None:
    text = path.read_text()
    for image in re.findall(r"(?:image:|FROM) +(\S+)", text):
        assert re.fullmatch(r"[a-z][a-z0-9-]*(?:/[a-z0-9-]+)?(?::[\w.-]+)?", image), image
    assert not re.search(r"BEGIN [A-Z ]*PRIVATE KEY|(?:password|token|key): [A-Za-z0-9+/]{20,}", text)
    for variable in re.findall(r"\bTASKPASS_[A-Z_]+\b", text):
        if path.suffix != ".py" and not re.search(rf"\${{{variable}", text):
            assert known(variable), variable


# --- Kubernetes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("document", KUBERNETES, ids=lambda d: f"{d['kind']}-{d['metadata']['name']}")
def test_every_manifest_fits_its_schema(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def test_no_manifest_is_missing() -> None:
    assert {document["kind"] for document in KUBERNETES} == {
        *("Namespace", "ServiceAccount", "Job", "StatefulSet", "Service", "PodDisruptionBudget", "NetworkPolicy")
    }


def pods() -> Iterator[dict[str, Any]]:
    for document in kinds("StatefulSet", "Job"):
        yield document["spec"]["template"]["spec"]


def test_pods_are_confined() -> None:
    for pod in pods():
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"]["memory"]


def test_every_mount_has_its_volume() -> None:
    for document in kinds("StatefulSet", "Job"):
        pod = document["spec"]["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        volumes |= {claim["metadata"]["name"] for claim in document["spec"].get("volumeClaimTemplates", ())}
        mounts = [mount for container in pod["containers"] for mount in container["volumeMounts"]]
        assert {mount["name"] for mount in mounts} == volumes
        paths = [mount["mountPath"] for mount in mounts]
        assert not [one for one in paths for other in paths if one != other and one.startswith(f"{other}/")]


def test_selectors_find_the_brokers() -> None:
    (brokers,) = kinds("StatefulSet")
    labels = brokers["spec"]["template"]["metadata"]["labels"].items()
    ports = {port["name"] for port in brokers["spec"]["template"]["spec"]["containers"][0]["ports"]}
    for service in kinds("Service"):
        assert service["spec"]["selector"].items() <= labels
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    for document in kinds("PodDisruptionBudget"):
        assert document["spec"]["selector"]["matchLabels"].items() <= labels
        assert document["spec"]["maxUnavailable"] < brokers["spec"]["replicas"]
    (policy,) = kinds("NetworkPolicy")
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= labels
    assert set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"}
    assert brokers["spec"]["serviceName"] in {service["metadata"]["name"] for service in kinds("Service")}


def test_the_kill_switch_is_reached_while_nothing_is_issued() -> None:
    by_name = {service["metadata"]["name"]: service["spec"] for service in kinds("Service")}
    assert by_name["taskpass-control"]["publishNotReadyAddresses"] is True
    assert "publishNotReadyAddresses" not in by_name["taskpass-tokens"]
    (brokers,) = kinds("StatefulSet")
    broker = brokers["spec"]["template"]["spec"]["containers"][0]
    assert broker["livenessProbe"]["httpGet"] == {"path": "/livez", "port": "control"}
    assert broker["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "tokens"}


def test_registry_and_policies_load_from_what_a_config_map_looks_like(tmp_path: Path) -> None:
    """Links to a hidden directory that is replaced as a whole; folders of policies by `items`."""
    write_skeleton(tmp_path / "made", issuer="https://taskpass.example.com", idp_jwks={"keys": [_JWK]})
    mounted = tmp_path / "registry"
    (mounted / "..2026_11_21").mkdir(parents=True)
    (mounted / "..data").symlink_to("..2026_11_21")
    for path in (tmp_path / "made/registry").glob("*.yaml"):
        (mounted / "..data" / path.name).write_bytes(path.read_bytes())
        (mounted / path.name).symlink_to(f"..data/{path.name}")
    registry = load(mounted)
    assert set(registry.agents) == {"dispute-bot"}

    mounted = tmp_path / "policies"
    (mounted / "..2026_11_21").mkdir(parents=True)
    (mounted / "..data").symlink_to("..2026_11_21")
    (brokers,) = kinds("StatefulSet")
    volumes = {volume["name"]: volume for volume in brokers["spec"]["template"]["spec"]["volumes"]}
    for item in volumes["policies"]["configMap"]["items"]:
        target = mounted / "..data" / item["path"]
        target.parent.mkdir(exist_ok=True)
        sources = (
            (tmp_path / "made/policies").joinpath(target.parent.name).glob("*.cedar")
            if target.suffix == ".cedar"
            else [tmp_path / "made/policies" / target.name]
        )
        target.write_text("\n".join(source.read_text() for source in sources))
        top = mounted / Path(item["path"]).parts[0]
        if not top.is_symlink():
            top.symlink_to(f"..data/{top.name}")
    assert len(load_directory(mounted, vocabulary(registry)).files) == 3


_JWK = {
    "kty": "EC",
    "crv": "P-256",
    "alg": "ES256",
    "use": "sig",
    "x": "axfR8uEsQkf4vOblY6RA8ncDfYEt6zOg9KE5RdiYwpY",
    "y": "T-NC4v4af5uO5-tKfA-eFivOM1drMV7Oy7ZAaDe_UfU",
}


# --- Compose ----------------------------------------------------------------------------------------------------------

_SERVICE_KEYS = {
    *("image", "build", "user", "read_only", "cap_drop", "security_opt", "restart", "stop_grace_period", "mem_limit"),
    *("pids_limit", "ulimits", "tmpfs", "networks", "expose", "ports", "depends_on", "environment", "healthcheck"),
    *("volumes", "command", "shm_size"),
}


def test_compose_names_what_it_declares() -> None:
    assert set(COMPOSE) <= {"name", "services", "networks", "volumes", "x-broker"}
    services: dict[str, dict[str, Any]] = COMPOSE["services"]
    assert set(services) == {"upgrade", *BROKERS, "postgres", "redis", "nginx"}
    for name, service in services.items():
        assert set(service) <= _SERVICE_KEYS, name
        assert set(service["networks"]) <= set(COMPOSE["networks"])
        depends = service.get("depends_on", {})
        assert set(depends) <= set(services)
        for other, how in depends.items() if isinstance(depends, dict) else ():
            if how["condition"] == "service_healthy":
                assert "test" in services[other]["healthcheck"]
        for volume in service.get("volumes", ()):
            source, target, *_ = volume.split(":")
            assert target.startswith("/")
            assert source.startswith(".") or source in COMPOSE["volumes"]
        if source_of := service.get("build"):
            assert (DEPLOY / "compose" / source_of["context"] / source_of["dockerfile"]).exists()


def test_compose_confines_and_shows_the_world_nginx_alone() -> None:
    services: dict[str, dict[str, Any]] = COMPOSE["services"]
    assert [name for name, service in services.items() if "ports" in service] == ["nginx"]
    assert COMPOSE["networks"]["inside"]["internal"] is True
    for name in ("upgrade", *BROKERS, "redis", "nginx"):
        assert services[name]["read_only"] is True
        assert services[name]["cap_drop"] == ["ALL"]
        assert services[name]["security_opt"] == ["no-new-privileges:true"]
        assert not services[name]["user"].startswith("0")
    states = [volume for name in BROKERS for volume in services[name]["volumes"] if "/var/lib/taskpass" in volume]
    assert len(set(states)) == len(BROKERS)  # what a broker keeps beside the ledger is its own


def test_the_two_brokers_trust_nginx_and_nobody_else() -> None:
    subnet = COMPOSE["networks"]["inside"]["ipam"]["config"][0]["subnet"]
    assert COMPOSE["services"]["broker-a"]["environment"]["TASKPASS_SERVE__TRUSTED_PROXIES"] == subnet


# --- Dockerfile -------------------------------------------------------------------------------------------------------


def test_the_dockerfile_builds_from_what_is_here_and_runs_without_root(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text((DEPLOY / "docker/Dockerfile").read_text())
    steps = DockerfileParser(str(tmp_path)).structure
    stages = [n for n, step in enumerate(steps) if step["instruction"] == "FROM"]
    assert {step["instruction"] for step in steps} <= {
        *("FROM", "WORKDIR", "ENV", "RUN", "COPY", "LABEL", "USER", "VOLUME", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK"),
        *("ENTRYPOINT", "CMD", "COMMENT"),
    }
    last = {step["instruction"]: step["value"] for step in steps[stages[-1] :]}
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", last["USER"])
    assert json.loads(last["ENTRYPOINT"]) == ["taskpass"]
    assert json.loads(last["CMD"]) == ["serve"]
    assert last["STOPSIGNAL"] == "SIGTERM"
    sent = (DEPLOY / "docker/Dockerfile.dockerignore").read_text()
    for step in steps:
        if step["instruction"] == "COPY" and not step["value"].startswith("--from"):
            for source in step["value"].split()[:-1]:
                assert (ROOT / source).exists(), source
                assert f"!{source.split('/')[0]}" in sent, source
        if step["instruction"] == "RUN" and "-r requirements" in step["value"]:
            assert "--require-hashes" in step["value"]


# --- systemd ----------------------------------------------------------------------------------------------------------


def test_the_unit_is_hardened() -> None:
    for line in (
        "NoNewPrivileges=true",
        "ProtectSystem=strict",
        "CapabilityBoundingSet=",
        "User=taskpass",
        "UMask=0077",
    ):
        assert f"\n{line}\n" in UNIT
    assert "KillMode=mixed" in UNIT


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / "taskpass.service"
    unit.write_text(re.sub(r"/opt/taskpass/bin/taskpass", shutil.which("true") or "/bin/true", UNIT))
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False, timeout=30
    )
    about_it = [line for line in verified.stderr.splitlines() if "taskpass.service" in line]
    assert about_it == []
    rated = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", str(unit)],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert rated.returncode == 0, rated.stdout[-1500:] + rated.stderr


# --- nginx ------------------------------------------------------------------------------------------------------------


def location(path: str) -> str:
    found = re.search(rf"location {re.escape(path)} {{(.*?)}}", NGINX, re.DOTALL)
    assert found is not None
    return found[1]


def test_streams_pass_unbuffered_and_metrics_do_not_pass() -> None:
    stream = location("= /v1/revocations/stream")
    for setting in ("proxy_buffering off", "gzip off", "proxy_pass http://control"):
        assert f"{setting};" in stream
    assert location("= /metrics").strip() == "return 404;"
    assert "proxy_pass http://tokens;" in location("= /oauth2/token")
    assert "proxy_set_header X-Forwarded-For $remote_addr;" in NGINX
    assert "non_idempotent" not in NGINX


def test_a_name_that_is_not_in_the_configuration_is_an_error() -> None:
    with pytest.raises(KeyError):
        nginx_configuration({"no such thing": "x"})
