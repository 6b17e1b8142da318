"""The broker under test: its configuration, registry and policies, as an operator would have written them.

Fifty agents, each with a registered key of its own (`private_key_jwt`, single-use assertions), one resource that is
asked for, and a bundle of ten policies that all have to be evaluated for a request. A larger bundle adds policies for
other agents and actions, as in an organisation where most policies are about somebody else.
"""

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import yaml
from cryptography.hazmat.primitives.asymmetric import ec

from broker.cli.init import write_skeleton
from broker.config import Config, load_config
from broker.jose import Signer
from broker.stores import create

Item = TypeVar("Item")

AGENTS = 50
AUDIENCE = "https://records.example.com"
SCOPE = "records:read"
OTHERS = "https://others.example.com"
VERIFIERS = 4
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_IN_ONE_FILE = 1_000  # larger ones are refused
_CURVE_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


@dataclass(frozen=True, slots=True)
class Site:
    """One configured broker on this machine, not running."""

    directory: Path
    issuer: str
    control: str
    agents: int

    @property
    def config_path(self) -> Path:
        """Its `taskpass.toml`."""
        return self.directory / "taskpass.toml"

    @property
    def config(self) -> Config:
        """Its configuration."""
        return load_config(self.config_path)

    @property
    def ledger(self) -> Path:
        """Its ledger's file."""
        return self.config.ledger.path


def signer_of(name: str) -> Signer:
    """The key of a workload of the bench. Made from its name, so that every process of the bench can sign for it."""
    secret = int.from_bytes(hashlib.sha512(f"taskpass bench {name}".encode()).digest()) % (_CURVE_ORDER - 1) + 1
    return Signer(private_key=ec.derive_private_key(secret, ec.SECP256R1()))


def agent_name(number: int) -> str:
    """The id, and the assertion's subject, of one of the agents."""
    return f"agent-{number:05d}"


def verifier_name(number: int) -> str:
    """The id, and the assertion's subject, of one of the verifiers."""
    return f"verifier-{number}"


def make_site(
    directory: Path,
    *,
    port: int,
    agents: int = AGENTS,
    policies: int = 10,
    workers: int = 1,
    ttl_s: int = 300,
    database: str | None = None,
    control: str | None = None,
) -> Site:
    """Write the configuration below `directory`, which must not exist, and make its ledger: a file, or in the empty
    PostgreSQL database of this URL. `control` is where verifiers are sent, if not to this broker.
    """
    issuer = f"http://127.0.0.1:{port}"
    write_skeleton(directory, issuer=issuer)
    config = directory / "taskpass.toml"
    text = config.read_text(encoding="utf-8")
    text = text.replace("# workers = 2", f"workers = {workers}").replace("# max_ttl_s = 300", f"max_ttl_s = {ttl_s}")
    if database is not None:
        text = text.replace('path = "data/ledger.db"', f'url = "{database}"\nstate_path = "data"')
    if control is not None:
        text = text.replace(f'control_url = "http://127.0.0.1:{port + 1}"', f'control_url = "{control}"')
    config.write_text(text.replace('# level = "info"', 'level = "warning"'), encoding="utf-8")
    for name, rows in _registry(agents, others=max(0, policies - 10), ttl_s=ttl_s).items():
        for file, part in _in_files(directory / "registry" / f"{name}.yaml", list(rows.items())):
            file.write_text(yaml.dump({name: dict(part)}, Dumper=_DUMPER), encoding="utf-8")
    for old in (directory / "policies").rglob("*.*"):
        old.unlink()
    permits, gates, nevers = _policies(policies)
    for folder, texts in (("permits", permits), ("gates", gates), ("nevers", nevers)):
        for file, some in _in_files(directory / "policies" / folder / "bench.cedar", texts):
            file.write_text("\n".join(some), encoding="utf-8")
    (directory / "policies" / "cases.yaml").write_text("cases: []\n", encoding="utf-8")
    site = Site(directory, issuer, f"http://127.0.0.1:{port + 1}", agents)
    create(site.config)
    return site


def another_broker(site: Site, directory: Path, *, port: int) -> Site:
    """A second broker of the same issuer on the same ledger, at addresses of its own."""
    shutil.copytree(site.directory, directory)
    config = directory / "taskpass.toml"
    text = config.read_text(encoding="utf-8")
    first = int(site.issuer.rpartition(":")[2])
    for name, old, new in (("listen", first, port), ("control_listen", first + 1, port + 1)):
        text = text.replace(f'{name} = "127.0.0.1:{old}"', f'{name} = "127.0.0.1:{new}"')
    config.write_text(text, encoding="utf-8")
    return Site(directory, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{port + 1}", site.agents)


def _in_files(path: Path, items: Sequence[Item]) -> Iterator[tuple[Path, Sequence[Item]]]:
    """The items in portions that one file may hold, and the file for each: `path`, then others beside it."""
    for first in range(0, len(items), _IN_ONE_FILE):
        file = path.with_stem(f"{path.stem}-{first}") if first else path
        yield file, items[first : first + _IN_ONE_FILE]


def _registry(agents: int, *, others: int, ttl_s: int) -> dict[str, dict[str, object]]:
    today = datetime.now(UTC).date()
    review = {
        "reviewer": "Bench",
        "reviewed": today.isoformat(),
        "expires": (today + timedelta(days=90)).isoformat(),
    }
    names = [agent_name(number) for number in range(agents)]
    verifiers = [verifier_name(number) for number in range(VERIFIERS)]
    return {
        "agents": {
            name: {
                "owner": "finance-platform",
                "purpose": "Reads records.",
                "workflow": "Reads records, and nothing else.",
                "identities": [{"trust": name}],
                "boundary": {"records": [SCOPE]},
                "review": dict(review),
                "limits": {"token_ttl_s": ttl_s},
            }
            for name in names
        },
        "trust": {
            name: {"kind": "key", "subject": name, "jwks": {"keys": [_public(name)]}} for name in (*names, *verifiers)
        },
        "verifiers": {
            name: {"owner": "finance-platform", "identities": [{"trust": name}], "audiences": [AUDIENCE]}
            for name in verifiers
        },
        "resources": {
            "records": _resource("Records", AUDIENCE, [SCOPE]),
            "others": _resource(
                "Others", "https://others.example.com", [f"others:{n}" for n in range(others // 10 + 1)]
            ),
        },
    }


def _public(name: str) -> dict[str, str]:
    return {**signer_of(name).jwk, "use": "sig", "alg": "ES256"}


def _resource(system: str, audience: str, actions: list[str]) -> dict[str, object]:
    return {
        "system": system,
        "audience": audience,
        "owner": "finance-platform",
        "data_classes": ["internal"],
        "leaves_boundary": False,
        "retention": "1 year",
        "actions": {
            action: {
                "access": "read",
                "description": "Read.",
                "parameters": {"amount": {"type": "integer"}, "region": {"type": "string"}},
            }
            for action in actions
        },
    }


def _policies(count: int) -> tuple[list[str], list[str], list[str]]:
    """Permits, gates and nevers, `count` in all. The first ten can match every request of the bench, by their heads, so
    each request pays for all of them.
    """
    here = f'principal, action == Action::"{SCOPE}", resource'
    permits = [f'@id("reads-records") permit ({here});'] + [
        f'@id("reads-region-{n}") permit ({here}) when {{ context.parameters has region && '
        f'context.parameters.region == "region-{n}" }};'
        for n in range(3)
    ]
    gates = [
        f'@id("large-{n}") @approvers("team") forbid ({here}) when {{ context.parameters has amount && '
        f"context.parameters.amount > {1000 + n} }};"
        for n in range(3)
    ]
    nevers = [
        f'@id("negative-{n}") forbid ({here}) when {{ context.parameters has amount && '
        f"context.parameters.amount < {-n} }};"
        for n in range(3)
    ]
    permits += list(_others(count - 10))
    return permits, gates, nevers


def _others(count: int) -> Iterator[str]:
    for n in range(count):
        yield (
            f'@id("other-{n}") permit (principal == Agent::"{agent_name(n % AGENTS)}", '
            f'action == Action::"others:{n // 10}", resource) when {{ context.parameters has amount && '
            f"context.parameters.amount < {n} }};"
        )
