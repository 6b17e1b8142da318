"""Signing keys that a vault seals, and signing keys that stay in one: against a stand-in, and against the real one."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from broker.app import Role
from broker.errors import ConfigurationInvalid, Unavailable
from broker.jose import Profile, load_jwks, parse, verify
from broker.keys import Keyring
from broker.keystore import reseal, sealer_of, transit_of
from broker.ledger.commands.admin import IN_TRANSIT
from broker.sealing import KeySealer
from broker.sections import TransitSection
from broker.stores import create, open_ledger
from tests.kit import INVOICES, Broker, Home
from tests.signals.test_conformance import until
from tests.transit import KEY, Engine, bao_or_skip, engine

real = pytest.mark.bao


@pytest.fixture
def vault() -> Iterator[Engine]:
    with engine() as made:
        yield made


@pytest.fixture(scope="module")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    made = bao_or_skip(tmp_path_factory.mktemp("bao"))
    yield made
    made.close()


@pytest.fixture(params=["stand-in", pytest.param("OpenBao", marks=real)])
def server(request: pytest.FixtureRequest) -> Any:
    """Whatever answers as a transit engine."""
    return request.getfixturevalue("vault" if request.param == "stand-in" else "bao")


def use(home: Home, server: Any, *, timeout_s: float = 10.0, **keys: Any) -> None:
    """Have the home's brokers use the engine for `keys`."""
    section = TransitSection(address=server.address, token=SecretStr(server.token), key=KEY, timeout_s=timeout_s)
    changed = home.config.keys.model_copy(update=keys)
    home.config = home.config.model_copy(update={"transit": section, "keys": changed})


def sealed_by(home: Home) -> dict[str, set[str]]:
    """purpose -> how its private parts are kept."""
    ledger = open_ledger(home.config, now=home.clock)
    try:
        with ledger.read() as r:
            rows = r.execute("SELECT purpose, sealed FROM keys WHERE state <> 'killed'").fetchall()
    finally:
        ledger.close()
    kinds: dict[str, set[str]] = {}
    for purpose, sealed in rows:
        raw = bytes(sealed)
        kind = "there" if raw.startswith(IN_TRANSIT) else "vault" if raw.startswith(b"taskpass:transit:") else "key"
        kinds.setdefault(purpose, set()).add(kind)
    return kinds


def resealed(home: Home) -> list[str]:
    ledger = open_ledger(home.config, now=home.clock)
    try:
        return reseal(home.config, ledger)
    finally:
        ledger.close()


def checked(broker: Broker, token: str) -> dict[str, Any]:
    """The claims of a token that holds by the published keys."""
    keys = load_jwks(broker.get("/oauth2/jwks").content)
    profile = Profile(
        typ=frozenset({"at+jwt"}),
        algs=frozenset({"ES256"}),
        issuer=broker.home.issuer,
        audiences=frozenset({INVOICES}),
        sole_audience=True,
        kind="access token",
        max_lifetime_s=3_600,
    )
    return dict(verify(token, keys.find, profile, broker.clock.s))


# --- Sealing ----------------------------------------------------------------------------------------------------------


def test_a_vault_takes_over_the_sealing_without_a_pause(home, start, server):
    use(home, server)
    running = start(role=Role.ALL)
    before = running.granted()["access_token"]
    use(home, server, seal="transit")
    changed = resealed(home)
    assert len(changed) >= 4
    assert sealed_by(home) == {purpose: {"vault"} for purpose in ("token", "session", "checkpoint")}
    assert resealed(home) == [], "once is enough"
    (event,) = running.events("keys.resealed")
    assert (event["kids"], event["seal"]) == (changed, "transit")
    assert checked(running, running.granted()["access_token"])
    running.close()

    use(home, server, seal="transit", encryption_key_file=None)  # the old key is not needed any more
    again = start()
    assert checked(again, before)
    assert checked(again, again.granted()["access_token"])
    assert again.post("/v1/keys/rotate", {"reason": "test"}, by="operator").status_code == 200
    assert checked(again, again.granted()["access_token"])
    assert sealed_by(home)["token"] == {"vault"}


def test_and_gives_it_back(home, start, server):
    use(home, server, seal="transit")
    resealed(home)
    use(home, server, seal="key")
    assert len(resealed(home)) >= 4
    assert start().granted()
    assert sealed_by(home)["token"] == {"key"}


def test_a_new_sealing_key_replaces_the_old_one(home, start, tmp_path):
    old, new = home.config.keys.encryption_key_file, tmp_path / "new.key"
    KeySealer.create_file(new)
    keys = home.config.keys
    home.config = home.config.model_copy(update={"keys": keys.model_copy(update={"encryption_key_file": new})})
    with pytest.raises(ConfigurationInvalid, match="does not open"):
        start()
    both = {"encryption_key_file": new, "previous_encryption_key_file": old}
    home.config = home.config.model_copy(update={"keys": keys.model_copy(update=both)})
    running = start()
    assert running.granted()
    assert len(resealed(home)) >= 4
    running.close()
    home.config = home.config.model_copy(update={"keys": keys.model_copy(update={"encryption_key_file": new})})
    assert start().granted()


def test_the_vault_is_asked_once_for_all_keys_of_a_process(home, start, vault):
    start().close()  # what a first start makes is made
    use(home, vault, seal="transit")
    resealed(home)
    vault.calls.clear()
    running = start()
    for _ in range(5):
        assert running.granted()
    running.get("/v1/ledger/checkpoint", by="operator")
    assert vault.calls == ["decrypt"]
    vault.fault = "silent"
    assert running.granted(), "what is open stays open while the vault is away"


@pytest.mark.parametrize("fault", ["silent", "sealed", "garbage"])
def test_without_the_vault_nothing_is_signed_and_the_kill_switch_works(home, start, vault, fault):
    start().close()
    use(home, vault, seal="transit", timeout_s=0.5)
    resealed(home)
    vault.fault = fault
    running = start()
    answer = running.token()
    assert (answer.status_code, answer.json()["error"]) == (503, "temporarily_unavailable")
    assert vault.token not in answer.text
    assert running.events("issued", "failed") == [], "nothing is written of what could not be signed"
    assert running.get("/readyz").json()["reasons"][0]["code"] == "vault_away"
    body = {"target": "agent", "value": "dispute-bot", "reason": "test"}
    assert running.request("POST", "/v1/kills", json=body, bearer=home.operator()).status_code == 201
    vault.fault = ""
    running.run(running.process.keyring.learn())
    assert running.token("mesh-bot", resource="https://archive.example.com").status_code == 200


def test_a_renewed_token_is_used_at_once(home, start, vault, tmp_path):
    file = tmp_path / "token"
    file.write_text("wrong\n")
    file.chmod(0o600)
    use(home, vault, seal="transit")
    section = TransitSection(address=vault.address, token_file=file, key=KEY)
    home.config = home.config.model_copy(update={"transit": section})
    with pytest.raises(Unavailable):
        resealed(home)
    file.write_text(vault.token)
    assert len(resealed(home)) >= 4
    file.chmod(0o644)
    with pytest.raises(ConfigurationInvalid, match="cannot be used"):
        sealer_of(home.config)


@pytest.mark.parametrize(
    "given",
    [
        {"address": "http://vault.example.com:8200", "token": "x"},
        {"address": "https://vault.example.com"},
        {"token": "x"},
        {"address": "https://vault.example.com", "token": "x", "mount": "../sys"},
        {"address": "https://vault.example.com", "token": "x", "key": "a/b"},
    ],
)
def test_what_cannot_be_meant_is_refused(given):
    with pytest.raises(ValueError, match="TransitSection"):
        TransitSection.model_validate(given)


# --- Signing ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def remote(home: Home, start: Any, server: Any) -> Broker:
    """A broker whose access tokens are signed in the vault: after two rotations its active key is there."""
    use(home, server, sign="transit")
    running: Broker = start()
    for _ in range(2):
        assert running.post("/v1/keys/rotate", {"reason": "into the vault"}, by="operator").status_code == 200
    return running


def test_tokens_that_a_vault_signed_hold_like_any_other(remote):
    token = remote.granted()["access_token"]
    assert checked(remote, token)["client_id"] == "dispute-bot"
    assert remote.active(token)
    assert remote.kill("agent", "dispute-bot").status_code == 201
    assert not remote.active(token)
    assert "there" in sealed_by(remote.home)["token"]
    assert sealed_by(remote.home)["session"] == {"key"}


def test_one_batch_is_one_call(home, start, vault):
    use(home, vault, sign="transit")
    running = start()
    for _ in range(2):
        running.post("/v1/keys/rotate", {"reason": "into the vault"}, by="operator")
    vault.calls.clear()
    fields = [running.token_fields() for _ in range(20)]
    from urllib.parse import urlencode

    headers = {"content-type": "application/x-www-form-urlencoded"}
    answers = running.gather(
        running.ask("POST", "/oauth2/token", content=urlencode(each).encode(), headers=headers) for each in fields
    )
    assert {answer.status_code for answer in answers} == {200}
    assert len({checked(running, answer.json()["access_token"])["jti"] for answer in answers}) == 20
    assert vault.calls.count("sign") <= 3


FAULTS = ["silent", "sealed", "garbage", "forge", "too few", "one fails"]


def signing_there(home: Home, start: Any, vault: Engine) -> Broker:
    """A broker whose active key is in the stand-in."""
    use(home, vault, sign="transit", timeout_s=0.5)
    running: Broker = start()
    for _ in range(2):
        running.post("/v1/keys/rotate", {"reason": "into the vault"}, by="operator")
    return running


@pytest.fixture(autouse=True)
def _chores_do_not_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long a test takes: it says when."""

    async def later(_: Keyring) -> None:
        pass

    monkeypatch.setattr(Keyring, "probe", later)


def probe(running: Broker, *, now: Any = Keyring.probe) -> None:
    """What a chore does every second."""
    running.run(now(running.process.keyring))


@pytest.mark.parametrize("fault", FAULTS)
def test_what_the_vault_does_not_sign_is_recorded_as_failed_and_never_leaves(home, start, vault, fault):
    running = signing_there(home, start, vault)
    vault.fault = fault
    answer = running.token()
    assert (answer.status_code, answer.json()["error"]) == (503, "temporarily_unavailable")
    assert "access_token" not in answer.text
    (issued,), (failed,) = running.events("issued"), running.events("failed")
    assert failed["jti"] == issued["jti"]
    vault.fault = ""
    probe(running)
    assert checked(running, running.granted()["access_token"])


@pytest.mark.parametrize("fault", FAULTS)
def test_after_a_failure_nothing_is_written_until_the_vault_signs_again(home, start, vault, fault):
    running = signing_there(home, start, vault)
    vault.fault = fault
    assert running.token().status_code == 503
    size, calls = running.size, len(vault.calls)
    fields = running.token_fields()
    for _ in range(5):
        answer = running.form("/oauth2/token", fields)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert answer.json()["error"] == "temporarily_unavailable"
    probe(running)
    assert running.form("/oauth2/token", fields).status_code == 503
    assert running.size == size, "neither tokens, nor failures, nor proofs of identity that were spent"
    assert vault.calls[calls:].count("sign") <= 1, "the probe's alone"
    ready = running.get("/readyz")
    assert (ready.status_code, [each["code"] for each in ready.json()["reasons"]]) == (503, ["vault_away"])
    refused = running.token(resource="https://unknown.example.com")
    assert refused.status_code == 400, "what is refused anyway is, and recorded"
    vault.fault = ""
    probe(running)
    assert running.get("/readyz").json() == {"status": "ready", "reasons": []}
    token = running.form("/oauth2/token", fields).json()["access_token"]
    assert checked(running, token), "the same proof of identity, at last"


def test_a_chore_asks_until_it_signs_again(home, start, vault, monkeypatch):
    monkeypatch.undo()  # it does probe here
    running = signing_there(home, start, vault)
    vault.fault = "sealed"
    assert running.token().status_code == 503
    vault.fault = ""
    running.run(until(lambda: not running.process.app.state.ready()))
    assert running.granted()


def test_a_broker_that_nobody_asks_finds_out_by_itself(home, start, vault, monkeypatch):
    running = signing_there(home, start, vault)
    probe(running)
    calls = len(vault.calls)
    probe(running)
    assert len(vault.calls) == calls, "it signed a moment ago"
    monkeypatch.setattr("broker.keys._ASK_AFTER_S", 0.0)
    probe(running)
    assert vault.calls[calls:] == ["sign"]
    assert running.get("/readyz").status_code == 200
    vault.fault = "sealed"
    probe(running)
    assert running.get("/readyz").status_code == 503
    assert running.events("issued") == []


def test_keys_that_are_here_sign_on_while_the_vault_is_away(home, start, vault):
    running = start()
    assert running.granted()
    running.close()
    use(home, vault, sign="transit")
    vault.fault = "sealed"
    running = start()
    probe(running)
    assert running.granted()
    assert running.get("/readyz").status_code == 200


def test_the_loop_goes_on_while_the_vault_is_silent(home, start, vault):
    running = signing_there(home, start, vault)
    vault.fault = "silent"

    async def ask_and_live() -> float:
        import asyncio

        waiting = asyncio.create_task(running.ask("POST", "/oauth2/token", data=running.token_fields(), headers={}))
        await asyncio.sleep(0.05)
        began = time.monotonic()
        assert (await running.ask("GET", "/livez")).status_code == 200
        took = time.monotonic() - began
        await waiting
        return took

    assert running.run(ask_and_live()) < 0.3


def test_keys_of_both_kinds_live_side_by_side(home, start, vault):
    running = start()
    old = running.granted()["access_token"]
    running.close()
    use(home, vault, sign="transit")
    running = start()
    for _ in range(2):
        running.post("/v1/keys/rotate", {"reason": "into the vault"}, by="operator")
    new = running.granted()["access_token"]
    assert parse(old).header.kid != parse(new).header.kid
    assert checked(running, old)
    assert checked(running, new)
    assert resealed(home) == [], "what stays in the vault is not sealed here"


# --- Rotation by several brokers --------------------------------------------------------------------------------------


def states(broker: Broker, purpose: str = "token") -> list[str]:
    rows = broker.query("SELECT state FROM keys WHERE purpose = ? ORDER BY state", purpose)
    return [state for (state,) in rows]


def test_of_two_who_rotate_at_once_one_does(home, start):
    one, other = start(), start(role=Role.CONTROL)
    session = one.session("operator")

    def rotate(broker: Broker) -> int:
        answer = broker.request("POST", "/v1/keys/rotate", json={"reason": "drill"}, bearer=session)
        return int(answer.status_code)

    with ThreadPoolExecutor(2) as pool:
        codes = sorted(pool.map(rotate, (one, other)))
    assert codes in ([200, 200], [200, 409])
    assert states(one).count("next") == states(one).count("active") == 1
    assert len(states(one)) == 2 + codes.count(200)


def test_both_publish_a_next_key_and_one_is_kept(home, start):
    one, other = start(), start(role=Role.CONTROL)
    (active,) = one.query("SELECT kid FROM keys WHERE purpose = 'token' AND state = 'next'")[0]
    assert one.kill("key", active).status_code == 201
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda broker: broker.do("keys"), (one, other)))
    assert states(one).count("next") == 1


def test_a_broker_knows_a_key_before_the_first_token_by_it(home, start, vault):
    use(home, vault, seal="transit")
    resealed(home)
    one, other = start(), start(role=Role.CONTROL)
    session = other.session("operator")
    assert one.post("/v1/keys/rotate", {"reason": "drill"}, by="operator").status_code == 200
    token = one.granted()["access_token"]
    vault.fault = "silent"  # other needs no vault for it: public keys come from the ledger
    answer = other.form("/oauth2/introspect", {"token": token}, bearer=session)
    assert answer.json()["active"] is True


def test_a_new_ledger_is_sealed_by_the_vault_from_the_start(tmp_path: Path, vault):
    home = Home(tmp_path / "broker")
    use(home, vault, seal="transit", sign="transit", encryption_key_file=None)
    fresh = home.config.ledger.path.with_name("fresh.db")
    ledger = home.config.ledger.model_copy(update={"path": fresh, "url": None})
    home.config = home.config.model_copy(update={"ledger": ledger})
    create(home.config, now=home.clock)
    assert sealed_by(home) == {"token": {"there"}, "session": {"vault"}, "checkpoint": {"vault"}}
    running = Broker(home)
    try:
        assert checked(running, running.granted()["access_token"])
    finally:
        running.close()


def test_the_engine_itself(server, home):
    use(home, server)
    transit = transit_of(home.config)
    assert transit.decrypt(KEY, transit.encrypt(KEY, b"data key")) == b"data key"
    with pytest.raises(Unavailable):
        transit.decrypt(KEY, "vault:v1:AAAA")
    from broker.jose import load_jwk

    name = f"taskpass-test-{time.time_ns()}"
    public = load_jwk(transit.make_signing_key(name))
    signatures = transit.sign(name, public, [b"one", b"two"])
    assert [len(each) for each in signatures if isinstance(each, bytes)] == [64, 64]
    other = load_jwk(transit.make_signing_key(f"{name}-other"))
    assert all(isinstance(each, Unavailable) for each in transit.sign(name, other, [b"one"]))
