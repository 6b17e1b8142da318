"""A broker of the invariants' tests: its files, the identities that use it, its processes, and what it answered."""

import json
import os
import secrets
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import yaml
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from broker.cli.init import write_skeleton
from broker.config import Config, load_config
from broker.jose import Signer
from broker.stores import create
from demo.ports import free_port
from tests.invariants.checker import Introspected, Killing, Token, Transcript

IDP = "https://idp.example.com"
AUDIENCES = {name: f"https://{name}.example.com" for name in ("invoices", "credits", "payments")}
AGENTS = tuple(f"bot-{n}" for n in range(6))
OWNERS = ("team-0", "team-1")  # each owns every other agent
READY_WITHIN_S = 30
STOPS_WITHIN_S = 60


class Site:
    """One configured broker with a new ledger: six agents of two owners that read invoices and propose credits."""

    def __init__(self, directory: Path, *, database: str | None = None) -> None:
        """`database` is the URL of an empty PostgreSQL database, for a ledger that is not a file."""
        self.directory = directory
        port = free_port(in_a_row=2)
        self.issuer, self.control = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{port + 1}"
        self._idp = Signer(private_key=ec.generate_private_key(ec.SECP256R1()))
        jwks = directory / "idp.json"
        jwks.write_text(json.dumps({"keys": [{**self._idp.jwk, "use": "sig", "alg": "ES256"}]}))
        broker = directory / "broker"
        write_skeleton(broker, issuer=self.issuer, idp_issuer=IDP, idp_jwks={"file": str(jwks)})
        _more_agents(broker)
        self.config_path = broker / "taskpass.toml"
        self.registry = broker / "registry"
        if database is not None:
            text = self.config_path.read_text()
            self.config_path.write_text(
                text.replace('path = "data/ledger.db"', f'url = "{database}"\nstate_path = "data"')
            )
        self._operator = _signer(broker / "keys" / "operator.pem")
        create(self.config)

    @property
    def config(self) -> Config:
        return load_config(self.config_path)

    @property
    def ledger(self) -> Path:
        return self.config.ledger.path

    def assertion(self, subject: str, *, jti: str | None = None, offset_s: int = 0) -> str:
        """A workload's fresh assertion, good for a minute."""
        return self._signed(self._idp, "JWT", IDP, subject, jti, offset_s)

    def operator_assertion(self, *, offset_s: int = 0) -> str:
        """The operator's."""
        return self._signed(self._operator, "client-authentication+jwt", "operator", "operator", None, offset_s)

    def _signed(self, signer: Signer, typ: str, iss: str, sub: str, jti: str | None, offset_s: int) -> str:
        now = int(time.time()) + offset_s
        claims = {"iss": iss, "sub": sub, "aud": self.issuer, "iat": now, "exp": now + 60}
        return signer.sign(typ, {**claims, "jti": jti or secrets.token_hex(12)})


def _more_agents(broker: Path) -> None:
    agents = broker / "registry" / "agents.yaml"
    (template,) = yaml.safe_load(agents.read_text())["agents"].values()
    rows = {
        agent: {
            **template,
            "owner": OWNERS[n % 2],
            "identities": [{"trust": "idp", "subject": agent}],
            "limits": {"token_ttl_s": 300, "task_ttl_s": 3600, "open_tasks": 10_000},
        }
        for n, agent in enumerate(AGENTS)
    }
    agents.write_text(_yaml({"agents": {"dispute-bot": template, **rows}}))
    owners = broker / "registry" / "owners.yaml"
    (owner,) = yaml.safe_load(owners.read_text())["owners"].values()
    owners.write_text(_yaml({"owners": {"finance-platform": owner, **dict.fromkeys(OWNERS, owner)}}))
    permits = [
        f'@id("{agent}-{verb}")\npermit (principal == Agent::"{agent}", action == Action::"{action}", resource);\n'
        for agent in AGENTS
        for verb, action in (("reads", "invoices:read"), ("proposes", "credits:propose"))
    ]
    (broker / "policies" / "permits" / "bots.cedar").write_text("\n".join(permits))


class _Plain(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _yaml(content: Any) -> str:
    return yaml.dump(content, Dumper=_Plain)


def _signer(path: Path) -> Signer:
    key = load_pem_private_key(path.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return Signer(private_key=key)


# --- Processes --------------------------------------------------------------------------------------------------------


class Child:
    """A process of `tests.invariants.child`, ready when this returns."""

    def __init__(self, site: Site, *arguments: str, env: Mapping[str, str] | None = None) -> None:
        self.log = site.directory / f"{'-'.join(arguments)}.log"
        reading, writing = os.pipe()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.invariants.child", str(site.config_path), str(writing), *arguments],
                env={**os.environ, **(env or {})},
                pass_fds=(writing,),
                stdout=log,
                stderr=log,
            )
        os.close(writing)
        try:
            ready, _, _ = select.select([reading], [], [], READY_WITHIN_S)
            if not ready or os.read(reading, 5) != b"ready":
                self.stop()
                raise RuntimeError(f"the process did not start:\n{self.log.read_text()[-3000:]}")
        finally:
            os.close(reading)

    def stop(self, number: int = signal.SIGTERM, *, within_s: float = 20) -> int:
        """Tell it to stop, and wait; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def wait(self, within_s: float = 20) -> int:
        """Its exit code, once it has ended by itself."""
        return self.process.wait(within_s)

    def wait_until_it_stands_still(self) -> None:
        """Until it has stopped itself by a signal. Fails when it does not, instead of waiting for ever."""
        deadline = time.monotonic() + STOPS_WITHIN_S
        pid = status = 0
        while not pid:
            assert time.monotonic() < deadline, "it never reached the place where it is to stop"
            pid, status = os.waitpid(self.process.pid, os.WUNTRACED | os.WNOHANG)
            time.sleep(0.01)
        assert os.WIFSTOPPED(status), "it ended instead"


@contextmanager
def child(site: Site, *arguments: str, env: Mapping[str, str] | None = None) -> Iterator[Child]:
    """A process that has ended when the context has."""
    started = Child(site, *arguments, env=env)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.process.kill()
        started.process.wait()


def children_of(pid: int) -> list[int]:
    """The processes that this one started and that still are."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(each) for each in found.split()]


def is_running(pid: int) -> bool:
    """Whether the process is there, and not just its entry in the table."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


# --- Clients ----------------------------------------------------------------------------------------------------------

ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"


class Client:
    """Talks to one process, and writes down what it is answered."""

    def __init__(self, site: Site, http: httpx2.AsyncClient, transcript: Transcript) -> None:
        self.site, self.http, self.transcript = site, http, transcript
        self.session = ""

    async def token(self, agent: str, *, assertion: str | None = None, **form: str) -> httpx2.Response:
        """Ask for a credential; one that is answered is in the transcript."""
        assertion = assertion or self.site.assertion(agent)
        body = {
            "grant_type": "client_credentials",
            "client_assertion_type": ASSERTION_TYPE,
            "client_assertion": assertion,
            "resource": AUDIENCES["invoices"],
        } | form
        sent = time.monotonic()
        response = await self.http.post("/oauth2/token", data=body)
        if response.status_code == 200:
            received = time.monotonic()
            compact = response.json()["access_token"]
            self.transcript.tokens.append(Token.of(compact, sent=sent, received=received, assertion=assertion))
        return response

    async def login(self) -> None:
        """Open an operator's session for what follows."""
        response = await self.http.post("/v1/sessions", headers=bearer(self.site.operator_assertion()))
        assert response.status_code == 201, response.text
        self.session = response.json()["session_token"]

    async def operate(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx2.Response:
        """One call of the operator's."""
        return await self.http.request(method, path, headers=bearer(self.session), json=body)

    async def kill(self, target: str, value: str, *, hold: bool | None = None) -> httpx2.Response:
        """Kill; one that is answered as durable is in the transcript."""
        sent = time.monotonic()
        body: dict[str, Any] = {"target": target, "value": value, "reason": "test"}
        response = await self.operate("POST", "/v1/kills", body if hold is None else body | {"hold": hold})
        if response.status_code == 201:
            self.transcript.kills.append(Killing(sent, time.monotonic(), response.json()["position"]))
        return response

    async def introspect(self, token: str) -> bool:
        """Whether the broker calls the token good now; in the transcript."""
        sent = time.monotonic()
        answer = await self.http.post("/oauth2/introspect", headers=bearer(self.session), data={"token": token})
        if answer.status_code == 503:  # it says nothing of the token
            return False
        assert answer.status_code == 200, answer.text
        active: bool = answer.json()["active"]
        jti = Token.of(token, sent=0, received=0).claims["jti"]
        self.transcript.introspections.append(Introspected(sent, time.monotonic(), jti, active))
        return active


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}
