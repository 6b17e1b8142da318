"""A real broker for tests: real configuration files, a real SQLite ledger, HTTP in, JSON out, and a clock that only a
test moves. `Home` is what outlives a restart; `Broker` is one running process on it, driven from plain test functions.
"""

import asyncio
import os
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode

import httpx2
import orjson
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from pydantic import SecretStr

from broker.app import Process, Role, running
from broker.cli.init import write_skeleton
from broker.config import Config, LedgerSection, load_config
from broker.issuing import Issuers
from broker.jose import Signer
from broker.stores import create

T = TypeVar("T")

ISSUER = "http://127.0.0.1:8700"
IDP = "https://idp.example.com"
OTHER_IDP = "https://other-idp.example.com"
DOMAIN = "example.org"
START_MS = 1_790_000_000_000

INVOICES = "https://invoices.example.com"
CREDITS = "https://credits.example.com"
PAYMENTS = "https://payments.example.com"
ARCHIVE = "https://archive.example.com"

JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"
ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
GRANTS = ("client_credentials", JWT_BEARER)
FORM = {"content-type": "application/x-www-form-urlencoded"}


class Clock:
    """Milliseconds since the epoch, moved by the test."""

    def __init__(self, now: int = START_MS) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now

    @property
    def s(self) -> int:
        """Whole seconds, as in JWTs."""
        return self.now // 1000

    def forward(self, seconds: float) -> None:
        self.now += int(seconds * 1000)


def on_postgres(config: Config) -> Config:
    """The configuration with a new, empty database, if the tests are told to run on PostgreSQL.

    TASKPASS_TEST_POSTGRES is the URL of a server's database `postgres`, by a user who may create others.
    """
    server = os.environ.get("TASKPASS_TEST_POSTGRES")
    if server is None:
        return config
    import psycopg

    name = f"ledger_{secrets.token_hex(8)}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    ledger = LedgerSection(
        url=SecretStr(server.removesuffix("/postgres") + f"/{name}"),
        state_path=config.ledger.path.parent,
        origin=config.ledger.origin,
    )
    return config.model_copy(update={"ledger": ledger})


class Home:
    """One broker's directory and everybody's keys. Survives restarts."""

    def __init__(self, path: Path, *, clock: Callable[[], int] | None = None, issuer: str = ISSUER) -> None:
        self.path, self.issuer = path, issuer
        self.clock: Any = clock or Clock()
        self.idp, self.other_idp, self.mesh = (_signer() for _ in range(3))
        self._write_files()
        self.config: Config = on_postgres(load_config(path / "taskpass.toml"))
        create(self.config, now=self.clock)

    # --- Files ---

    def _write_files(self) -> None:
        write_skeleton(
            self.path,
            issuer=self.issuer,
            idp_issuer=IDP,
            idp_jwks={"keys": [{**self.idp.jwk, "use": "sig"}]},
            today=datetime.fromtimestamp(self.clock() / 1000, UTC).date(),
        )
        pem = {name: (self.path / f"keys/{name}.pem").read_bytes() for name in ("operator", "break-glass")}
        self.operators = {name: _signer(load_pem_private_key(raw, None)) for name, raw in pem.items()}
        self.operators |= {name: _signer() for name in ("data-lead", "reader")}
        self.append("registry/owners.yaml", _OWNERS)
        self.append("registry/agents.yaml", _AGENTS)
        self.append("registry/verifiers.yaml", _VERIFIERS)
        self.append("registry/resources.yaml", _RESOURCES)
        keys = {name: _json(self.operators[name].jwk) for name in ("data-lead", "reader")}
        self.append("registry/operators.yaml", _OPERATORS.format(data_lead=keys["data-lead"], reader=keys["reader"]))
        trust = {"other": _json(self.other_idp.jwk), "mesh": _json({**self.mesh.jwk, "use": "jwt-svid", "alg": None})}
        self.append("registry/trust.yaml", _TRUST.format(**trust))
        self.write("policies/permits/data.cedar", _PERMITS)
        self.write("policies/gates/data.cedar", _GATES)

    def write(self, name: str, text: str) -> None:
        (self.path / name).write_text(text)

    def append(self, name: str, text: str) -> None:
        self.write(name, self.text(name) + text)

    def replace(self, name: str, old: str, new: str) -> None:
        text = self.text(name)
        assert old in text
        self.write(name, text.replace(old, new))

    def text(self, name: str) -> str:
        return (self.path / name).read_text()

    # --- Proofs of identity ---

    def claims(self, subject: str = "dispute-bot", **changes: Any) -> dict[str, Any]:
        """Claims of a good assertion; a change to None removes one."""
        now = self.clock() // 1000
        made = {
            "iss": IDP,
            "sub": subject,
            "aud": self.issuer,
            "iat": now,
            "exp": now + 60,
            "jti": secrets.token_hex(8),
            **changes,
        }
        return {name: value for name, value in made.items() if value is not None}

    def assertion(self, subject: str = "dispute-bot", **changes: Any) -> str:
        """A workload's assertion, as the identity provider signs it."""
        signer = self.other_idp if changes.get("iss") == OTHER_IDP else self.idp
        return signer.sign("JWT", self.claims(subject, **changes))

    def svid(self, path: str = "/ns/data/sa/bot", **changes: Any) -> str:
        """A JWT-SVID: reusable while it lives."""
        made = self.claims(f"spiffe://{DOMAIN}{path}", **{"iss": None, "jti": None, "aud": [self.issuer], **changes})
        return self.mesh.sign("JWT", made)

    def operator(self, name: str = "operator", **changes: Any) -> str:
        """An operator's assertion."""
        return self.operators[name].sign("client-authentication+jwt", self.claims(name, **{"iss": name, **changes}))

    def proof(self, who: str, **changes: Any) -> str:
        """An assertion of whoever has this name: operator, agent or verifier."""
        if who in self.operators:
            return self.operator(who, **changes)
        return self.svid(**changes) if who == "mesh-bot" else self.assertion(who, **changes)


class Broker:
    """One running broker process on a home, on an event loop of its own."""

    def __init__(self, home: Home, *, role: Role = Role.ALL, issuers: Issuers | None = None) -> None:
        self.home, self.clock = home, home.clock
        self._runner = asyncio.Runner()
        self._stack = AsyncExitStack()
        self._sessions: dict[str, str] = {}
        self.closed = False
        try:
            self.process: Process = self.run(
                self._stack.enter_async_context(running(home.config, role=role, now=home.clock, issuers=issuers))
            )
            transport = httpx2.ASGITransport(app=self.process.app, raise_app_exceptions=False)
            self.http = self.run(
                self._stack.enter_async_context(httpx2.AsyncClient(transport=transport, base_url=home.issuer))
            )
        except BaseException:
            self.close()
            raise

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(coroutine)

    def gather(self, awaitables: Iterable[Awaitable[T]]) -> list[T]:
        async def together() -> list[T]:
            return list(await asyncio.gather(*awaitables))

        return self.run(together())

    def close(self) -> None:
        """Stop the process, as its supervisor would. Once is enough."""
        if not self.closed:
            self.closed = True
            self.run(self._stack.aclose())
            self._runner.close()

    # --- HTTP ---

    async def ask(self, method: str, path: str, *, bearer: str | None = None, **options: Any) -> httpx2.Response:
        headers = dict(options.pop("headers", {}))
        if bearer is not None:
            headers["authorization"] = f"Bearer {bearer}"
        return await self.http.request(method, path, headers=headers, **options)

    def request(self, method: str, path: str, **options: Any) -> httpx2.Response:
        return self.run(self.ask(method, path, **options))

    def get(self, path: str, *, by: str | None = None, **options: Any) -> httpx2.Response:
        """A GET with the session of `by`."""
        return self.request("GET", path, bearer=self.session(by) if by else None, **options)

    def post(self, path: str, body: Any = None, *, by: str | None = None, **options: Any) -> httpx2.Response:
        """A POST of a JSON body with the session of `by`."""
        return self.request("POST", path, json=body, bearer=self.session(by) if by else None, **options)

    def form(self, path: str, pairs: Mapping[str, Any] | list[tuple[str, str]], **options: Any) -> httpx2.Response:
        """A POST of a form, as sent: pairs may repeat."""
        headers = {**FORM, **options.pop("headers", {})}
        return self.request("POST", path, content=urlencode(pairs).encode(), headers=headers, **options)

    def session(self, who: str) -> str:
        """A session token of an operator, agent or verifier, opened once."""
        if who not in self._sessions:
            answer = self.request("POST", "/v1/sessions", bearer=self.home.proof(who))
            assert answer.status_code == 201, answer.text
            self._sessions[who] = answer.json()["session_token"]
        return self._sessions[who]

    # --- The main verbs ---

    def token_fields(
        self, agent: str = "dispute-bot", *, assertion: str | None = None, grant: str = GRANTS[0], **fields: Any
    ) -> dict[str, str]:
        """The form of a token request; a field of None is left out, `details` is the object of one task_action."""
        proof = self.home.proof(agent) if assertion is None else assertion
        made: dict[str, Any] = {"grant_type": grant}
        if grant == JWT_BEARER:
            made["assertion"] = proof
        else:
            made |= {"client_assertion_type": ASSERTION_TYPE, "client_assertion": proof}
        details = fields.pop("details", None)
        if details is not None:
            made["authorization_details"] = _json([{"type": "task_action", **details}])
        made |= {"resource": INVOICES if agent == "dispute-bot" else ARCHIVE, **fields}
        return {name: value for name, value in made.items() if value is not None}

    def token(self, agent: str = "dispute-bot", **fields: Any) -> httpx2.Response:
        """Ask the token endpoint."""
        return self.form("/oauth2/token", self.token_fields(agent, **fields))

    def granted(self, agent: str = "dispute-bot", **fields: Any) -> dict[str, Any]:
        """The body of a request that must succeed."""
        answer = self.token(agent, **fields)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def credit(self, cents: Any = 100, **fields: Any) -> httpx2.Response:
        """Ask for a credit: automatic up to 5000 cents, with approval above."""
        details = {"actions": ["credits:propose"], "parameters": {"invoice": "INV-1", "amount_cents": cents}}
        return self.token(resource=CREDITS, **{"details": details, **fields})

    def open_task(self, agent: str = "dispute-bot", **body: Any) -> str:
        """The id of a new task."""
        answer = self.post("/v1/tasks", {"purpose": "dispute 4411", **body}, by=agent)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def kill(self, target: str, value: str = "", *, by: str = "operator", **body: Any) -> httpx2.Response:
        """Kill, with a reason."""
        return self.post("/v1/kills", {"target": target, "value": value, "reason": "test", **body}, by=by)

    def active(self, token: str, *, by: str = "operator") -> bool:
        """What introspection says."""
        answer = self.form("/oauth2/introspect", {"token": token}, bearer=self.session(by))
        assert answer.status_code == 200, answer.text
        return bool(answer.json()["active"])

    # --- What is behind ---

    def do(self, *chores: str) -> None:
        """Run chores now."""
        for chore in chores:
            self.run(getattr(self.process.chores, chore)())

    def query(self, sql: str, *params: Any) -> list[Any]:
        """Rows of the store."""
        with self.process.ledger.read() as r:
            return list(r.execute(sql, params).fetchall())

    def events(self, *types: str, start: int = 0) -> list[dict[str, Any]]:
        """Events as written, from a position on."""
        found = [
            orjson.loads(raw) for (raw,) in self.query("SELECT bytes FROM events WHERE seq >= ? ORDER BY seq", start)
        ]
        return [event for event in found if not types or event["type"] in types]

    @property
    def size(self) -> int:
        """The ledger's size: where the next event goes."""
        with self.process.ledger.read() as r:
            return int(r.head().size)


def _signer(key: Any = None) -> Signer:
    return Signer(private_key=key or ec.generate_private_key(ec.SECP256R1()))


def _json(value: Any) -> str:
    if isinstance(value, dict):
        value = {name: member for name, member in value.items() if member is not None}
    return orjson.dumps(value).decode()


_OWNERS = """
  data-team:
    name: Data team
    contact: data@example.com
    backup: data-backup@example.com
    escalation: "+1 555 0101"
"""

_AGENTS = """
  data-bot:
    owner: data-team
    purpose: Exports archived records.
    workflow: Reads the archive and exports tables.
    identities:
      - {trust: idp, subject: data-bot}
    boundary:
      archive: ["archive:read", "archive:list", "archive:export"]
    review: {reviewer: Data review, reviewed: 2026-09-01, expires: 2027-03-01}
    limits: {token_ttl_s: 120, task_ttl_s: 600, open_tasks: 20}

  mesh-bot:
    owner: data-team
    purpose: Reads archived records from inside the mesh.
    workflow: Reads the archive.
    identities:
      - {trust: mesh, subject: "spiffe://example.org/ns/data/sa/bot"}
    boundary:
      archive: ["archive:read"]
    review: {reviewer: Data review, reviewed: 2026-09-01, expires: 2027-03-01}

  other-bot:
    owner: data-team
    purpose: The same subject at another identity provider.
    workflow: Reads the archive.
    identities:
      - {trust: other, subject: dispute-bot}
    boundary:
      archive: ["archive:read"]
    review: {reviewer: Data review, reviewed: 2026-09-01, expires: 2027-03-01}
"""

_VERIFIERS = """
  vault-door:
    owner: data-team
    identities:
      - {trust: idp, subject: vault-door}
    audiences:
      - https://archive.example.com
"""

_OPERATORS = """
  data-lead:
    name: Lead of the data team
    rights: [read, kill, resume]
    owners: [data-team]
    keys:
      - {data_lead}

  reader:
    name: Auditor
    rights: [read]
    owners: all
    keys:
      - {reader}
"""

_RESOURCES = """
  archive:
    system: Archive
    audience: https://archive.example.com
    owner: data-team
    data_classes: [personal]
    fields: [record]
    leaves_boundary: false
    retention: 1 year
    actions:
      archive:read:
        access: read
        description: Read a record.
      archive:list:
        access: read
        description: List the records.
      archive:export:
        access: write
        description: Export rows of a table.
        parameters:
          rows: {type: integer, required: true}
          table: {type: string, max_length: 40}
          full: {type: boolean}
      archive:purge:
        access: write
        description: Delete everything.
"""

_TRUST = """
  other:
    kind: oidc
    issuer: https://other-idp.example.com
    jwks: {{"keys": [{other}]}}

  mesh:
    kind: spiffe
    trust_domain: example.org
    jwks: {{"keys": [{mesh}]}}
"""

_PERMITS = """
@id("data-bot-reads")
permit (principal == Agent::"data-bot", action in [Action::"archive:read", Action::"archive:list"], resource);

@id("data-bot-exports")
permit (principal == Agent::"data-bot", action == Action::"archive:export", resource);

@id("mesh-bot-reads")
permit (principal == Agent::"mesh-bot", action == Action::"archive:read", resource);

@id("other-bot-reads")
permit (principal == Agent::"other-bot", action == Action::"archive:read", resource);
"""

_GATES = """
@id("big-exports")
@approvers("data-oncall")
@reason("More than a hundred rows need a person.")
forbid (principal, action == Action::"archive:export", resource) when { context.parameters.rows > 100 };
"""
