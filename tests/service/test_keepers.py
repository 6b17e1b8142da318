"""Credentials that only their maker can end, with token workers and a control process of their own."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from broker.app import Role
from tests.cli.test_cli_secret_broker import a_home
from tests.issuers.github_server import GitHubServer
from tests.issuers.sts_server import StsServer
from tests.kit import ISSUER, Broker, Clock


class Processes:
    def __init__(self, path: Path, clock: Clock, github: GitHubServer, sts: StsServer, key: rsa.RSAPrivateKey) -> None:
        self.clock, self.github = clock, github
        self.home = a_home(path, github, sts, key, clock=clock)
        self.control = Broker(self.home, role=Role.CONTROL)
        self.workers = [Broker(self.home, role=Role.TOKENS) for _ in range(2)]

    def issued(self, worker: Broker) -> dict[str, Any]:
        body = {"resource": "repos", "actions": ["repo:read"]}
        answer = worker.request("POST", "/v1/credentials", json=body, bearer=self.home.proof("data-bot"))
        assert answer.status_code == 201, answer.text
        return dict(answer.json())

    def shown(self, made: dict[str, Any]) -> dict[str, Any]:
        bearer = self.home.operator()
        return dict(self.control.request("GET", f"/v1/credentials/{made['id']}", bearer=bearer).json())


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    key, clock = rsa.generate_private_key(public_exponent=65537, key_size=2048), Clock()
    with GitHubServer(key=key.public_key(), now=clock) as github, StsServer(issuer=ISSUER, now=clock) as sts:
        made = Processes(tmp_path, clock, github, sts, key)
        try:
            yield made
        finally:
            for broker in (*made.workers, made.control):
                broker.close()


def settle(broker: Broker) -> None:
    broker.run(broker.process.reconciler.settle())


def test_its_maker_ends_it_and_nobody_comes_in_between(processes: Processes) -> None:
    first, second = processes.workers
    made = processes.issued(first)
    assert processes.control.kill("agent", "data-bot").status_code < 300
    settle(processes.control)
    settle(second)
    assert processes.github.alive() == [made["values"]["token"]]
    settle(first)
    assert processes.github.alive() == []
    assert processes.shown(made)["state"] == "revoked"


def test_without_its_maker_it_is_said_until_when_it_works(processes: Processes) -> None:
    made = processes.issued(processes.workers[0])
    processes.workers[0].close()
    assert processes.control.kill("agent", "data-bot").status_code < 300
    processes.clock.forward(6)
    settle(processes.workers[1])
    settle(processes.control)
    shown = processes.shown(made)
    assert shown["state"] == "revoking"
    assert "ends a token only for who holds it" in shown["note"]
    assert processes.github.alive()  # which was the truth
    processes.clock.forward(3_700)
    settle(processes.control)
    assert not processes.github.alive()
    assert processes.shown(made)["note"].startswith("By the clock")
    assert processes.shown(made)["state"] == "expired"  # nobody could revoke it
    assert processes.control.events("gone")[-1]["how"] == "expired"
