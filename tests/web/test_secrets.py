"""76: no secret in any log, ledger entry, column or error; 77: hostile text stays text, in every field that an agent
controls.
"""

import base64
import io
import sqlite3
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import orjson
import psycopg
import pytest
import structlog
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from broker.log import configure_logging
from tests.kit import CREDITS, Broker, Home

SEALED = {("keys", "sealed")}


def forms(secret: str | bytes) -> set[bytes]:
    """How a secret could show: raw, base64, URL-quoted, hex. A JWT's signature alone gives it away too."""
    raw = secret.encode() if isinstance(secret, str) else secret
    found = {raw, base64.b64encode(raw), base64.urlsafe_b64encode(raw), quote(raw).encode(), raw.hex().encode()}
    if raw.count(b".") == 2:
        found.add(raw.rpartition(b".")[2])
    return {each.rstrip(b"=") for each in found}


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What the broker's log really writes, as configured for production."""
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    configure_logging("debug", "json")
    structlog.configure(cache_logger_on_first_use=False)  # or the loggers would keep this test's stream
    yield written
    structlog.reset_defaults()


def everything_stored(home: Home) -> dict[str, bytes]:
    """Each column of each table, but the sealed ones."""
    found: dict[str, bytes] = {}
    if home.config.ledger.url is None:
        connection: Any = sqlite3.connect(home.config.ledger.path)
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    else:
        connection = psycopg.connect(home.config.ledger.url.get_secret_value())
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
    for (table,) in tables:
        cursor = connection.execute(f"SELECT * FROM {table}")
        columns = [each[0] for each in cursor.description]
        for row in cursor.fetchall():
            for column, value in zip(columns, row, strict=True):
                if value is not None and (table, column) not in SEALED:
                    raw = value if isinstance(value, bytes) else str(value).encode()
                    found[f"{table}.{column}"] = found.get(f"{table}.{column}", b"") + raw + b"\n"
    connection.close()
    return found


def test_76_no_secret_is_written_anywhere(home: Home, start: Any, logged: io.StringIO, monkeypatch: pytest.MonkeyPatch):
    broker: Broker = start()
    bodies: list[str] = []
    canaries: dict[str, str | bytes] = {}

    def kept(name: str, answer: Any) -> Any:
        body = answer.json() if answer.content else {}
        for member in ("access_token", "session_token"):
            if member in body:
                canaries[f"{name} {member}"] = body.pop(member)
        bodies.append(f"{dict(answer.headers)} {body}")
        return answer

    def proof(name: str, made: str) -> str:
        canaries[f"{name} proof"] = made
        return made

    for name, key in {"idp": home.idp, "mesh": home.mesh, **home.operators}.items():
        pem = key._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        canaries[f"{name} key"] = pem
        canaries[f"{name} scalar"] = key._key.private_numbers().private_value.to_bytes(32, "big")
    for kid, signer in broker.process.keyring._signers.items():
        canaries[f"our key {kid}"] = signer._key.private_numbers().private_value.to_bytes(32, "big")
    canaries["sealing key"] = (home.path / "keys/encryption.key").read_bytes().strip()
    checkpoint = broker.process.keyring.checkpoint_key()
    canaries["checkpoint key"] = checkpoint.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())

    once = proof("token", home.assertion())
    kept("token", broker.token(assertion=once))
    kept("replay", broker.token(assertion=once))
    kept(
        "bearer grant",
        broker.token(assertion=proof("grant", home.assertion()), grant="urn:ietf:params:oauth:grant-type:jwt-bearer"),
    )
    kept("approval", broker.credit(6000, assertion=proof("approval", home.assertion())))
    kept("never", broker.token(assertion=proof("never", home.assertion()), scope="no:such"))
    kept("svid", broker.token("mesh-bot", assertion=proof("svid", home.svid())))
    kept("wrong audience", broker.token(assertion=proof("aud", home.assertion(aud="https://x"))))
    kept("expired", broker.token(assertion=proof("expired", home.assertion(exp=broker.clock.s))))
    kept("unregistered", broker.token(assertion=proof("unregistered", home.assertion("nobody"))))
    kept(
        "secret",
        broker.form("/oauth2/token", {**broker.token_fields(), "client_secret": proof("secret", "hunter2hunter2")}),
    )
    for who in ("operator", "dispute-bot", "billing"):
        kept(who, broker.request("POST", "/v1/sessions", bearer=proof(who, home.proof(who))))
    session = canaries["operator session_token"]
    kept("wrong kind", broker.request("GET", "/v1/agents", bearer=str(canaries["dispute-bot session_token"])))
    kept("broken session", broker.request("GET", "/v1/agents", bearer=proof("tampered", str(session)[:-6] + "AAAAAA")))
    kept(
        "introspect", broker.form("/oauth2/introspect", {"token": canaries["token access_token"]}, bearer=str(session))
    )
    kept("rotate", broker.request("POST", "/v1/keys/rotate", bearer=str(session), json={"reason": "x"}))
    monkeypatch.setattr(broker.process.broker.issuance._issuer, "issue_all", lambda orders: 1 / 0)
    kept("failing", broker.token(assertion=proof("failing", home.assertion())))
    monkeypatch.undo()
    kept("revoke", broker.form("/oauth2/revoke", {"token": canaries["token access_token"]},
                               bearer=str(canaries["dispute-bot session_token"])))  # fmt: skip
    kept("kill", broker.request("POST", "/v1/kills", bearer=str(session), json={"target": "all", "reason": "x"}))
    for path in ("/v1/ledger?limit=1000", "/v1/keys", "/v1/agents", "/v1/kills", "/v1/approvals", "/readyz"):
        bodies.append(broker.request("GET", path, bearer=str(session)).text)
    broker.do("flush_refusals", "housekeep")
    broker.close()

    assert "refused" in logged.getvalue()  # the log was on
    places = {"log": logged.getvalue().encode(), "answers": "\n".join(bodies).encode()}
    places |= everything_stored(home)
    assert len(canaries) > 25
    for name, secret in canaries.items():
        for form in forms(secret):
            for place, content in places.items():
                assert form not in content, f"{name} in {place}"


HOSTILE = {
    "crlf": "a\r\nSet-Cookie: x=y",
    "newline": "a\n{\"event\":\"forged\"}",
    "nul": "a\x00b",
    "ansi": "\x1b[2J\x1b[31mred",
    "c1": "a\x9b31m",
    "bidi": "\u202egnp.exe",
    "zero-width": "a\u200bb",
    "json": '","type":"issued","x":"',
    "html": "<script>alert(1)</script>",
    "template": "{{7*7}}${7*7}%s%n",
    "sql": "'; DROP TABLE tasks; --",
    "path": "../../etc/passwd",
    "emoji": "🔥" * 50,
    "long": "x" * 30_000,
    "separator": "a\u2028b\u2029c",
    "replacement": "\ufffd\uffff",
    "tag": "\U000e0041",
}  # fmt: skip


def fields(broker: Broker, text: str) -> dict[str, Any]:
    """Every field that an agent controls, with its answer."""

    def details(**members: Any) -> str:
        return orjson.dumps([{"type": "task_action", "actions": ["credits:propose"], **members}]).decode()

    task = broker.open_task()
    agent = broker.session("dispute-bot")

    def opened(**body: Any) -> Any:
        return broker.post("/v1/tasks", {"purpose": "x", **body}, by="dispute-bot")

    raw = text.encode()
    sendable = b"\n" not in raw and b"\0" not in raw
    header = {b"user-agent": raw, b"x-forwarded-for": raw, b"x-request-id": raw}
    return {
        "purpose": opened(purpose=text),
        "ref": opened(trigger={"kind": "user", "ref": text}),
        "kind": opened(trigger={"kind": text}),
        "on_behalf_of": opened(on_behalf_of=text),
        "parent": opened(parent=text),
        "member": opened(**{text: 1}),
        "outcome": broker.post(f"/v1/tasks/{task}/end", {"outcome": text}, by="dispute-bot"),
        "task": broker.token(task=text),
        "client_id": broker.token(client_id=text),
        "scope": broker.token(scope=text),
        "resource": broker.token(resource=f"https://{text}"),
        "grant_type": broker.form("/oauth2/token", {**broker.token_fields(), "grant_type": text}),
        "unknown field": broker.form("/oauth2/token", {**broker.token_fields(), text: text}),
        "parameter": broker.token(
            resource=CREDITS, authorization_details=details(parameters={"amount_cents": 1, "invoice": text})
        ),
        "parameter name": broker.token(
            resource=CREDITS,
            authorization_details=details(parameters={text: 1}),
        ),
        "details type": broker.token(authorization_details=details(type=text)),
        "details action": broker.token(authorization_details=details(actions=[text])),
        "sub": broker.token(assertion=broker.home.assertion(text)),
        "jti": broker.token(assertion=broker.home.assertion(jti=text)),
        "claim": broker.token(assertion=broker.home.assertion(nickname=text, **{text[:100]: 1})),
        "token": broker.form("/oauth2/introspect", {"token": text}, bearer=agent),
        "path": broker.request("GET", f"/v1/tasks/{quote(text[:2000], safe='')}", bearer=agent),
        "query": broker.request("GET", "/v1/tasks", params={"state": text[:2000], "agent": text[:2000]}, bearer=agent),
        "headers": broker.run(broker.http.get("/v1/whoami", headers=header)) if sendable else None,
    }  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_77_hostile_text_stays_text(broker: Broker, logged: io.StringIO, text: str):
    answers = fields(broker, text)
    broker.do("flush_refusals")
    for name, answer in answers.items():
        if answer is None:
            continue
        assert answer.status_code < 500, f"{name}: {answer.text}"
        assert all("\n" not in value and "\r" not in value for value in answer.headers.values())
        assert not any(ord(char) < 32 or 127 <= ord(char) < 160 for char in answer.text), name
    log = logged.getvalue()
    assert log.count("\n") == len(log.splitlines())
    for line in log.split("\n"):
        assert not any(ord(char) < 32 for char in line), line
        assert not line or line.startswith("{")
    for (raw,) in broker.query("SELECT bytes FROM events"):
        assert not any(byte < 32 for byte in raw)
    assert {event["type"] for event in broker.events()} <= {
        "ledger.created", "key.published", "key.activated", "registry.loaded", "policies.loaded", "broker.started",
        "session.opened", "task.opened", "task.ended", "issued", "refused", "refusals", "approval.requested",
    }  # fmt: skip
    assert broker.granted()


@pytest.mark.parametrize("name", ["purpose", "on_behalf_of", "trigger_ref"])
def test_personal_text_is_kept_apart_from_the_tree(broker: Broker, name: str):
    text = "Mrs. Example, account 4411, canary"
    body = {"trigger": {"kind": "user", "ref": text}} if name == "trigger_ref" else {name: text}
    task = broker.open_task(**body)
    assert text in broker.get(f"/v1/tasks/{task}/receipt", by="dispute-bot").text
    assert not any(text.encode() in raw for (raw,) in broker.query("SELECT bytes FROM events"))
    assert text not in broker.get("/v1/ledger?limit=1000", by="operator").text
