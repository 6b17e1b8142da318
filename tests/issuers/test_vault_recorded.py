"""Vault's issuer against recorded answers of a real server, and against every way of not getting one.

Each recording says which server answered. They are replayed strictly: a request that was not recorded, or not at this
point, or with another token, fails the test.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from demo.ports import free_port
from issuers import IssuerError, Standing
from tests.issuers import vault as kit
from tests.issuers.api_server import Fault, Reply
from tests.issuers.vault_flows import BROKER, FLOWS, RECORDINGS, Replayer, Scene, scene_at


def recording(name: str) -> dict[str, Any]:
    made: dict[str, Any] = json.loads((RECORDINGS / f"vault_{name}.json").read_text())
    return made


@contextmanager
def replayed(name: str, place: Path) -> Iterator[tuple[Replayer, Scene]]:
    made = recording(name)
    with Replayer(made["exchanges"]) as server:
        yield server, scene_at(server.url, place, made["now_ms"], token=BROKER)
        assert server.wrong == []


@contextmanager
def failing(
    server: Replayer, scene: Scene, *faults: Fault, match: str | None = None
) -> Iterator[pytest.ExceptionInfo[IssuerError]]:
    """The next requests go wrong in these ways, and so does what needs them. Whoever waits in vain waits briefly."""
    link = scene.issuer._leased._link
    patient = link._timeout_s
    server.faults = list(faults)
    if any(fault.kind in {"silent", "drip"} for fault in faults):
        link._timeout_s = 0.2
    with pytest.raises(IssuerError, match=match) as caught:
        yield caught
    link._timeout_s, server.faults = patient, []


def test_every_flow_has_a_recording_that_says_what_answered() -> None:
    assert {path.stem for path in RECORDINGS.glob("vault_*.json")} == {f"vault_{name}" for name in FLOWS}
    for name in FLOWS:
        assert recording(name)["server"].startswith(("OpenBao 2.", "Vault "))


def test_no_recording_holds_a_token_or_the_name_of_a_host() -> None:
    for path in RECORDINGS.glob("vault_*.json"):
        text = path.read_text()
        assert "BEGIN RSA PRIVATE KEY" not in text
        assert '"s.' not in text
        assert '"hvs.' not in text
        assert "http" not in text.replace("http://127.0.0.1", "")


@pytest.mark.parametrize("name", FLOWS)
def test_a_recorded_flow_goes_the_same_way_again(name: str, tmp_path: Path) -> None:
    with replayed(name, tmp_path) as (server, scene):
        FLOWS[name](scene)
        assert server.left == []


# --- Every way of not getting an answer, with and without the effect -------------------------------------------------

SEALED = Fault("status", reply=Reply(503, b'{"errors":["Vault is sealed"]}', {"Content-Type": "application/json"}))
FAULTS = {
    "connection cut": Fault("cut"),
    "answer truncated": Fault("truncated"),
    "no JSON": Fault("garbage"),
    "no answer in time": Fault("silent"),
    "a byte at a time": Fault("drip"),
    "status 500": Fault("status", reply=Reply(500, b'{"errors":["1 error occurred: internal error"]}')),
    "status 502 of a proxy": Fault("status", reply=Reply(502, b"<html>Bad Gateway</html>")),
    "status 503": Fault("status", reply=Reply(503, b"", {"Retry-After": "7"})),
    "sealed": SEALED,
}


@pytest.mark.parametrize("name", FAULTS)
def test_an_answer_lost_after_the_effect_is_unknown_and_what_was_made_is_ended(name: str, tmp_path: Path) -> None:
    fault = FAULTS[name]
    with replayed("lost", tmp_path) as (server, scene):
        order = scene.order(kit.WRITER)
        prepared = scene.issuer.prepare(order)
        with failing(server, scene, Fault(fault.kind, happened=True, reply=fault.reply)) as lost_answer:
            scene.issuer.issue(order, prepared)
        assert lost_answer.value.happened is None
        scene.issuer.revoke(prepared)
        assert scene.standing(prepared) is Standing.GONE
        assert server.left == []


@pytest.mark.parametrize("name", [name for name in FAULTS if name != "a byte at a time"])
def test_a_fault_before_the_effect_promises_nothing_either_and_the_next_try_works(name: str, tmp_path: Path) -> None:
    fault = FAULTS[name]
    with replayed("login", tmp_path) as (server, scene):
        scene.issuer._sessions._vault._current()  # logged in
        reply = Reply(200, b'{"data": {}}') if fault.kind == "truncated" else fault.reply
        with failing(server, scene, Fault(fault.kind, reply=reply)) as refused:
            scene.issuer.prepare(scene.order(kit.READONLY))
        assert refused.value.happened is None
        FLOWS["login"](scene)
        assert server.left == []


@pytest.mark.parametrize("happened", [False, True])
@pytest.mark.parametrize("name", [name for name in FAULTS if name != "a byte at a time"])
def test_a_renewal_whose_answer_is_lost_is_not_called_one_nor_none(name: str, happened: bool, tmp_path: Path) -> None:
    fault = FAULTS[name]
    with replayed("renewed", tmp_path) as (server, scene):
        order = scene.order(kit.READONLY)
        minted = scene.issue(scene.order(kit.READONLY, deadline=order.iat + 600))
        reply = Reply(200, b'{"data": {}}') if fault.kind == "truncated" and not happened else fault.reply
        with failing(server, scene, Fault(fault.kind, happened=happened, reply=reply)) as lost_answer:
            scene.issuer.renew(minted.handle, order.iat + 300)
        assert lost_answer.value.happened is None


@pytest.mark.parametrize("status", [403, 404, 405, 413, 429])
def test_a_refusal_is_certain_to_have_done_nothing(status: int, tmp_path: Path) -> None:
    with replayed("login", tmp_path) as (server, scene):
        order = scene.order(kit.READONLY)
        prepared = scene.issuer.prepare(order)
        with failing(
            server, scene, Fault("status", reply=Reply(status, b'{"errors":["no"]}', {"Retry-After": "30"}))
        ) as refused:
            scene.issuer.issue(order, prepared)
        assert refused.value.happened is False
        assert refused.value.retry_after_s == (30 if status == 429 else None)


def test_a_server_that_cannot_be_reached_did_nothing(tmp_path: Path) -> None:
    scene = scene_at(f"http://127.0.0.1:{free_port()}", tmp_path, kit.wall(), token=BROKER)
    with pytest.raises(IssuerError) as refused:
        scene.issuer.prepare(scene.order(kit.READONLY))
    assert refused.value.happened is False


def test_a_redirect_is_not_followed_for_it_would_be_shown_the_token(tmp_path: Path) -> None:
    with replayed("login", tmp_path) as (server, scene):
        with failing(
            server,
            scene,
            Fault("status", reply=Reply(307, b"", {"Location": "http://127.0.0.1:1/v1/sys/seal"})),
            match="redirect",
        ):
            scene.issuer.prepare(scene.order(kit.READONLY))
        assert len(server.asked) == 1


def test_a_slow_server_is_given_up_in_time(tmp_path: Path) -> None:
    with replayed("login", tmp_path) as (server, scene):
        start = time.monotonic()
        with failing(server, scene, Fault("drip", happened=True)):
            scene.issuer.prepare(scene.order(kit.READONLY))
        assert time.monotonic() - start < 3


def test_an_answer_without_end_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("issuers.vault.link.MAX_ANSWER", 100_000)
    with replayed("login", tmp_path) as (server, scene), failing(server, scene, Fault("huge"), match="more than"):
        scene.issuer.prepare(scene.order(kit.READONLY))


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_look_that_failed_proves_nothing(fault: Fault, tmp_path: Path) -> None:
    with replayed("login", tmp_path) as (server, scene):
        minted = scene.issue(scene.order(kit.READONLY))
        with failing(server, scene, fault if fault.kind == "status" else Fault(fault.kind, happened=True)):
            scene.issuer.status(minted.handle)


@pytest.mark.parametrize("reason", ["permission denied", "namespace not authorized", "1 error occurred"])
@pytest.mark.parametrize("status", [400, 403, 404])
def test_a_refused_look_is_not_taken_for_an_absence(status: int, reason: str, tmp_path: Path) -> None:
    with replayed("login", tmp_path) as (server, scene):
        minted = scene.issue(scene.order(kit.READONLY))
        again = Fault("status", reply=Reply(status, json.dumps({"errors": [reason]}).encode()))
        with failing(server, scene, again, again, again):
            scene.issuer.status(minted.handle)


def test_60_a_lease_that_vault_gave_up_on_is_live_and_told_until_a_later_try_ends_it(tmp_path: Path) -> None:
    """Vault tries six times and then calls the lease irrevocable: to us it is one more that must be tried on."""
    given_up = {"data": {"id": "x", "ttl": -60, "revoke_error": "failed to revoke: password=hunter2"}}
    looked = Fault("status", reply=Reply(200, json.dumps(given_up).encode()))
    refusal = Fault("status", reply=Reply(400, b'{"errors":["failed to revoke entry: password=hunter2"]}'))
    with replayed("login", tmp_path) as (server, scene):
        minted = scene.issue(scene.order(kit.READONLY))
        assert scene.standing(minted.handle) is Standing.LIVE
        for _ in range(7):
            with failing(server, scene, refusal, match="goes on trying") as refused:
                scene.issuer.revoke(minted.handle)
            assert refused.value.happened is None
            server.faults = [looked]
            found = scene.issuer.status(minted.handle)
            assert (found.standing, found.note) == (Standing.LIVE, "Vault has failed to revoke it.")
        scene.issuer.revoke(minted.handle)
        assert scene.standing(minted.handle) is Standing.GONE


def test_no_error_repeats_what_the_server_said(tmp_path: Path) -> None:
    words = "password=hunter2 of v-token-readonly"
    for status in (400, 403, 404, 429, 500, 503):
        with replayed("login", tmp_path) as (server, scene):
            order = scene.order(kit.READONLY)
            prepared = scene.issuer.prepare(order)
            with failing(
                server, scene, Fault("status", reply=Reply(status, json.dumps({"errors": [words]}).encode()))
            ) as refused:
                scene.issuer.issue(order, prepared)
            assert "hunter2" not in f"{refused.value} {refused.value!r} {refused.value.sentence}"


def test_after_an_unknown_outcome_nobody_else_shares_the_session(tmp_path: Path) -> None:
    with replayed("lost", tmp_path) as (server, scene):
        order = scene.order(kit.WRITER)
        prepared = scene.issuer.prepare(order)
        with failing(server, scene, Fault("cut", happened=True)):
            scene.issuer.issue(order, prepared)
        with pytest.raises(IssuerError) as refused:  # by no retry either, which would make a second lease
            scene.issuer.issue(order, prepared)
        assert refused.value.happened is False


def test_nothing_secret_shows_in_what_is_shown(tmp_path: Path) -> None:
    with replayed("login", tmp_path) as (_, scene):
        minted = scene.issue(scene.order(kit.READONLY))
        shown = f"{minted!r} {scene.issuer!r} {dict(minted.handle)}"
        session = scene.issuer._sessions.find(minted.handle["accessor"])
        for secret in (minted.values["password"], session.token, BROKER):
            assert secret not in f"{shown} {session!r}"
