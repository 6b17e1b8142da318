"""The checker itself: it passes a sound ledger, and finds each invariant when that one is broken."""

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.invariants.checker import (
    Facts,
    Introspected,
    Killing,
    Token,
    Transcript,
    Tree,
    check,
    check_continues,
    killers_of,
    kills_in,
    leaf_hash,
)

AUDIENCES = {"invoices": "https://invoices.example.com"}
KEY = Ed25519PrivateKey.generate()
X = base64.urlsafe_b64encode(KEY.public_key().public_bytes_raw()).decode().rstrip("=")
T = 1_700_000_000_000


def issued(agent: str, proof: str, **changed: Any) -> dict[str, Any]:
    return {
        "type": "issued",
        "agent": agent,
        "proof": proof,
        "task": f"task-of-{proof}",
        "resource": "invoices",
        "actions": ["invoices:read"],
        "registry": "r1",
        "bundle": "p1",
        "kid": "k1",
        "iat": T // 1000,
        "exp": T // 1000 + 300,
    } | changed


def killing(match: list[str], **changed: Any) -> dict[str, Any]:
    return {"type": "killed", "matches": [match]} | changed


def story() -> list[dict[str, Any]]:
    """A sound history: two tokens, a pause with its hold, a resume, another token, a task and its kill."""
    killed: dict[str, Any] = {
        "type": "killed",
        "target": "agent",
        "value": "a",
        "matches": [["agent", "a"]],
        "hold": "h1",
    }
    return [
        {"type": "ledger.created", "epoch": "e"},
        {"type": "key.published", "purpose": "checkpoint", "jwk": {"x": X}},
        {"type": "registry.loaded", "hash": "r1"},
        {"type": "policies.loaded", "hash": "p1"},
        issued("a", "m1"),
        issued("b", "m2"),
        killed,
        issued("b", "m3"),
        {"type": "refused", "agent": "a", "proof": "m4", "reason": "held"},
        {"type": "refused", "agent": "a", "proof": "m4", "reason": "replayed"},
        {"type": "hold.lifted", "hold": "h1"},
        issued("a", "m5"),
        {"type": "task.opened", "task": "t1", "agent": "b", "deadline": T + 100_000},
        issued("b", "m6", task="t1", exp=T // 1000 + 100),
        killing(["task", "t1"]),
    ]


def facts_of(events: list[dict[str, Any]], *, checkpoints: tuple[int, ...] = (5, 9)) -> Facts:
    rows, tree, notes = [], Tree(), []
    for seq, event in enumerate(events):
        body = {"jti": f"grt_e_{seq}"} if event["type"] == "issued" else {}
        data = json.dumps({"seq": seq, "t": T + seq} | body | event).encode()
        rows.append((seq, data, leaf_hash(data)))
        tree.append(leaf_hash(data))
        if tree.size in checkpoints:
            text = f"log\n{tree.size}\n{base64.b64encode(tree.root()).decode()}\n"
            signature = base64.b64encode(b"\0\0\0\0" + KEY.sign(text.encode())).decode()
            notes.append((tree.size, f"{text}\n— log {signature}\n"))
    head = {
        "epoch": "e",
        "size": tree.size,
        "time": T + tree.size,
        "frontier": tree.complete(),
        "guard_version": 2,
        "floor": 0,
    }
    return Facts(rows, head | {"frontier": tree.complete()}, notes)


def token_of(event: dict[str, Any], *, at: float, **changed: Any) -> Token:
    claims = {
        "sub": event["agent"],
        "client_id": event["agent"],
        "aud": AUDIENCES["invoices"],
        "scope": "invoices:read",
        **{name: event[name] for name in ("seq", "jti", "task", "iat", "exp")},
    }
    return Token(at, at + 0.5, {"kid": event["kid"]}, claims | changed, assertion=event["proof"])


def killers(events: list[dict[str, Any]], token: Token) -> list[int]:
    return list(killers_of(list(kills_in(events)), token.claims, token.header["kid"]))


def transcript_of(facts: Facts) -> Transcript:
    """Event n was asked for at second n and answered half a second later."""
    events = facts.events
    tokens = [token_of(event, at=event["seq"]) for event in events if event["type"] == "issued"]
    kills = [Killing(event["seq"], event["seq"] + 0.5, event["seq"]) for event in events if event["type"] == "killed"]
    asked = [Introspected(100, 101, token.claims["jti"], not killers(events, token)) for token in tokens]
    return Transcript(tokens, kills, asked)


def test_a_sound_history_has_no_violation() -> None:
    facts = facts_of(story())
    assert check(facts, transcript_of(facts), audiences=AUDIENCES) == []
    assert check_continues(facts_of(story()[:8], checkpoints=(5,)), facts) == []


def test_the_rule_of_which_token_is_dead() -> None:
    facts = facts_of(story())
    dead = {token.claims["seq"] for token in transcript_of(facts).tokens if killers(facts.events, token)}
    assert dead == {4, 13}


Doctor = Callable[[list[dict[str, Any]]], None]


def change(position: int, **members: Any) -> Doctor:
    return lambda events: events[position].update(members)


def insert(position: int, event: dict[str, Any]) -> Doctor:
    return lambda events: events.insert(position, event)


@pytest.mark.parametrize(
    ("doctor", "number"),
    [
        pytest.param(insert(8, issued("a", "m9")), "1", id="issued to a held agent"),
        pytest.param(insert(8, killing(["all", ""], hold="h2")), "1", id="issued under a hold on all"),
        pytest.param(
            insert(7, killing(["resource", AUDIENCES["invoices"]], hold="h2")),
            "1",
            id="resource held",
        ),
        pytest.param(insert(15, issued("b", "m9", task="t1", exp=T // 1000 + 9)), "1", id="issued under a killed task"),
        pytest.param(insert(7, killing(["key", "k1"])), "1", id="signed with a killed key"),
        pytest.param(insert(13, {"type": "task.ended", "task": "t1", "children": []}), "1", id="under an ended task"),
        pytest.param(
            insert(13, {"type": "task.expired", "task": "t0", "children": ["t1"]}), "1", id="issued under a dead parent"
        ),
        pytest.param(change(5, jti="grt_e_4"), "3", id="an id that is another position"),
        pytest.param(change(5, seq=4), "5", id="a position taken twice"),
        pytest.param(change(5, exp=T // 1000 + 301), "7", id="lives longer than allowed"),
        pytest.param(change(13, exp=T // 1000 + 101), "7", id="outlives its task"),
        pytest.param(change(5, iat=T // 1000 + 2), "7", id="issued in the future"),
        pytest.param(change(5, proof="m1"), "8", id="a proof accepted twice"),
        pytest.param(change(11, proof="m4"), "8", id="a proof that a refusal has spent"),
        pytest.param(change(5, registry="r0"), "9", id="decided by another registry"),
        pytest.param(change(5, bundle="p0"), "9", id="decided by other policies"),
        pytest.param(change(8, t=T), "11", id="time goes back"),
    ],
)
def test_doctored_events_are_found(doctor: Doctor, number: str) -> None:
    events = story()
    doctor(events)
    assert [each for each in check(facts_of(events), audiences=AUDIENCES) if each.startswith(f"{number}:")]


def doctored_row(facts: Facts, position: int, data: bytes) -> None:
    facts.rows[position] = (position, data, leaf_hash(data))


@pytest.mark.parametrize(
    ("doctor", "number"),
    [
        pytest.param(lambda facts: facts.rows.pop(), "5", id="the last event lost"),
        pytest.param(lambda facts: facts.rows.pop(6), "5", id="a gap"),
        pytest.param(lambda facts: doctored_row(facts, 4, facts.rows[5][1]), "5", id="an exchanged event"),
        pytest.param(lambda facts: facts.rows.__setitem__(4, (4, facts.rows[4][1], b"")), "5", id="a stored hash"),
        pytest.param(lambda facts: facts.head.update(size=3), "5", id="the head's size"),
        pytest.param(lambda facts: facts.head.update(frontier=b""), "5", id="the head's tree"),
        pytest.param(lambda facts: facts.head.update(time=T), "11", id="the head's time"),
        pytest.param(lambda facts: facts.checkpoints.__setitem__(0, (6, facts.checkpoints[0][1])), "5", id="note"),
        pytest.param(
            lambda facts: facts.checkpoints.__setitem__(0, (5, facts.checkpoints[0][1].replace("log\n5", "gol\n5"))),
            "5",
            id="a forged checkpoint",
        ),
    ],
)
def test_a_doctored_file_is_found(doctor: Callable[[Facts], Any], number: str) -> None:
    facts = facts_of(story())
    doctor(facts)
    assert [each for each in check(facts, audiences=AUDIENCES) if each.startswith(f"{number}:")]


def replaced(position: int, **members: Any) -> Callable[[Transcript], None]:
    def doctor(transcript: Transcript) -> None:
        (index,) = (i for i, token in enumerate(transcript.tokens) if token.claims["seq"] == position)
        token = transcript.tokens[index]
        transcript.tokens[index] = Token(
            members.pop("sent", token.sent), 200, members.pop("header", token.header), {**token.claims, **members}
        )

    return doctor


@pytest.mark.parametrize(
    ("doctor", "number"),
    [
        pytest.param(replaced(4, jti="grt_e_99", seq=99), "3", id="a token the ledger does not know"),
        pytest.param(replaced(4, seq=6, jti="grt_e_6"), "3", id="a token at a kill's position"),
        pytest.param(replaced(4, exp=T // 1000 + 9_000), "3", id="another expiry"),
        pytest.param(replaced(4, iat=1), "3", id="another time of issue"),
        pytest.param(replaced(4, sub="b"), "3", id="another agent"),
        pytest.param(replaced(4, header={"kid": "k0"}), "3", id="another key"),
        pytest.param(replaced(4, scope="invoices:read invoices:write"), "7", id="a wider scope"),
        pytest.param(replaced(4, aud="https://payments.example.com"), "7", id="another audience"),
        pytest.param(
            replaced(4, authorization_details=[{"actions": [], "parameters": {"amount_cents": 1}}]),
            "7",
            id="parameters",
        ),
        pytest.param(replaced(4, authorization_details=[{"actions": ["invoices:write"]}]), "7", id="wider details"),
        pytest.param(replaced(5, sent=7.0), "1", id="asked for after the kill was acknowledged"),
        pytest.param(lambda script: script.tokens.append(script.tokens[0]), "8", id="delivered twice"),
        pytest.param(lambda script: script.kills.append(Killing(1, 2, 5)), "1", id="a kill that is not in the ledger"),
        pytest.param(lambda script: script.introspections.append(Introspected(60, 61, "grt_e_4", True)), "1", id="up"),
        pytest.param(
            lambda script: script.introspections.append(Introspected(60, 61, "grt_e_5", False)), "1", id="down"
        ),
    ],
)
def test_a_doctored_transcript_is_found(doctor: Callable[[Transcript], Any], number: str) -> None:
    facts = facts_of(story())
    transcript = transcript_of(facts)
    doctor(transcript)
    found = check(facts, transcript, audiences=AUDIENCES)
    assert [each for each in found if each.startswith(f"{number}:")], found


def test_a_token_recorded_as_failed_must_not_have_left() -> None:
    facts = facts_of([*story(), {"type": "failed", "jti": "grt_e_5", "task": "t", "why": "KeyError"}])
    assert any("recorded as failed" in each for each in check(facts, transcript_of(facts), audiences=AUDIENCES))


@pytest.mark.parametrize(
    ("doctor", "number"),
    [
        pytest.param(lambda facts: facts.rows.pop(), "5", id="a lost event"),
        pytest.param(lambda facts: facts.checkpoints.pop(), "5", id="a lost checkpoint"),
        pytest.param(lambda facts: facts.head.update(epoch="f"), "5", id="another epoch"),
        pytest.param(lambda facts: facts.head.update(time=T), "11", id="time"),
        pytest.param(lambda facts: facts.head.update(guard_version=1), "11", id="guard"),
        pytest.param(lambda facts: facts.head.update(floor=-1), "11", id="floor"),
    ],
)
def test_going_back_is_found(doctor: Callable[[Facts], Any], number: str) -> None:
    before, after = facts_of(story()), facts_of(story())
    doctor(after)
    assert [each for each in check_continues(before, after) if each.startswith(f"{number}:")]
