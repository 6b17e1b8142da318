"""The kill switch through its front door: every target, its dry run and its receipt; holds; nothing revives."""

from typing import Any

import pytest

from broker.jose import parse
from tests.kit import ARCHIVE, CREDITS, INVOICES, Broker


class World:
    """Credentials of several agents, and which of them each kill must end."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        broker.session("operator")
        self.task = broker.open_task()
        self.child = broker.open_task(parent=self.task)
        data_task = broker.open_task("data-bot")
        self.tokens = {
            "invoice": broker.granted()["access_token"],
            "credit": broker.credit(100).json()["access_token"],
            "task": broker.granted(task=self.task)["access_token"],
            "child": broker.granted(task=self.child)["access_token"],
            "data": broker.granted("data-bot")["access_token"],
            "data-task": broker.granted("data-bot", task=data_task)["access_token"],
            "mesh": broker.granted("mesh-bot")["access_token"],
        }
        self.kid = parse(self.tokens["data"]).header.kid
        self.grant = parse(self.tokens["credit"]).unverified_claims["jti"]
        self.implicit = parse(self.tokens["invoice"]).unverified_claims["task"]

    def dead(self) -> set[str]:
        return {name for name, token in self.tokens.items() if not self.broker.active(token)}


@pytest.fixture
def world(broker: Broker) -> World:
    return World(broker)


FINANCE = {"invoice", "credit", "task", "child"}
DATA = {"data", "data-task", "mesh"}
KILLS: dict[str, tuple[str, Any, set[str], int]] = {
    "agent": ("agent", "dispute-bot", FINANCE, 2),
    "owner": ("owner", "data-team", DATA, 1),
    "task-with-child": ("task", lambda w: w.task, {"task", "child"}, 2),
    "child-task": ("task", lambda w: w.child, {"child"}, 1),
    "implicit-task": ("task", lambda w: w.implicit, {"invoice"}, 0),
    "grant": ("grant", lambda w: w.grant, {"credit"}, 0),
    "resource": ("resource", "archive", DATA, 0),
    "key": ("key", lambda w: w.kid, FINANCE | DATA, 0),
    "all": ("all", "", FINANCE | DATA, 3),
}


@pytest.mark.parametrize(("target", "value", "ends", "tasks"), KILLS.values(), ids=KILLS.keys())
def test_55_a_kill_ends_what_its_dry_run_said_and_nothing_else(
    world: World, target: str, value: Any, ends: set[str], tasks: int
):
    broker = world.broker
    value = value(world) if callable(value) else value
    size = broker.size
    preview = broker.kill(target, value, dry_run=True)
    assert preview.status_code == 200
    assert broker.size == size
    assert world.dead() == set()
    receipt = broker.kill(target, value)
    assert receipt.status_code == 201
    assert world.dead() == ends
    full = broker.get(f"/v1/kills/{receipt.json()['id']}?wait_ms=2000", by="operator").json()
    said, did = preview.json()["would_end"], full["ended"]
    assert did["tokens"] == said["tokens"] == len(ends)
    assert did["tasks"] == said["tasks"] == tasks
    assert did["by_agent"] == said["by_agent"]
    assert did["by_resource"] == said["by_resource"]
    assert did["latest_expiry"] == said["latest_expiry"]
    assert full["complete"]  # nobody listens
    assert full["issuance"]["stopped"] == (target in {"agent", "owner", "resource", "all"})
    # Receipts do not change when what they count expires, is pruned, or the floor moves.
    for _ in range(3):
        broker.clock.forward(400)
        broker.do("expire_tasks", "housekeep")
        later = broker.request("GET", f"/v1/kills/{receipt.json()['id']}", bearer=broker.home.operator()).json()
        assert later["ended"] == did
    assert later["worst_case"]["until"] is None


@pytest.mark.parametrize("target", ["agent", "owner", "resource", "all"])
def test_62_holds_stop_issuance_until_lifted_and_nothing_revives(world: World, target: str):
    broker = world.broker
    value = {"agent": "data-bot", "owner": "data-team", "resource": "archive", "all": ""}[target]
    hold = broker.kill(target, value).json()["issuance"]["hold"]
    dead = world.dead()
    refused = broker.token("data-bot").json()
    assert (refused["error"], refused["outcome"], refused["hold"]) == ("access_denied", "held", hold)
    opened = broker.request("POST", "/v1/tasks", bearer=broker.home.assertion("data-bot"), json={"purpose": "x"})
    assert opened.status_code == (201 if target == "resource" else 403)
    assert [each["id"] for each in broker.get("/v1/holds", by="operator").json()] == [hold]
    assert broker.post(f"/v1/holds/{hold}/lift", {"reason": "x"}, by="operator").json() == {"lifted": [hold]}
    assert broker.post(f"/v1/holds/{hold}/lift", {"reason": "x"}, by="operator").status_code == 409
    assert world.dead() == dead
    fresh = broker.granted("data-bot")["access_token"]
    assert broker.active(fresh)
    assert world.dead() == dead


def test_62_a_kill_of_a_kill_counts_only_what_was_left(world: World):
    broker = world.broker
    broker.kill("grant", world.grant)
    second = broker.kill("agent", "dispute-bot").json()
    third = broker.kill("agent", "dispute-bot").json()
    ended = [
        broker.get(f"/v1/kills/{r['id']}?wait_ms=2000", by="operator").json()["ended"]["tokens"]
        for r in (second, third)
    ]
    assert ended == [3, 0]
    assert second["issuance"]["hold"] != third["issuance"]["hold"]
    lifted = broker.post("/v1/agents/dispute-bot/resume", {"reason": "x"}, by="operator").json()
    assert len(lifted["lifted"]) == 2
    assert broker.token().status_code == 200


def test_resume_says_what_still_holds(broker: Broker):
    broker.kill("owner", "data-team")
    assert broker.post("/v1/agents/data-bot/resume", {"reason": "x"}, by="operator").status_code == 409
    broker.kill("agent", "data-bot")
    answer = broker.post("/v1/agents/data-bot/resume", {"reason": "x"}, by="operator").json()
    assert len(answer["still_held_by"]) == 1
    assert broker.token("data-bot").json()["outcome"] == "held"


def test_without_a_hold_an_agent_asks_anew_at_once(world: World):
    broker = world.broker
    receipt = broker.kill("agent", "dispute-bot", hold=False).json()
    assert receipt["issuance"] == {"stopped": False, "stopped_at": None, "hold": None, "final": False}
    assert world.dead() == FINANCE
    assert broker.active(broker.granted()["access_token"])


def test_a_task_kill_is_final(world: World):
    broker = world.broker
    broker.kill("task", world.task)
    for task in (world.task, world.child):
        assert broker.get(f"/v1/tasks/{task}", by="dispute-bot").json()["state"] == "killed"
        assert broker.token(task=task).json()["outcome"] == "task_over"
        heartbeat = broker.post(f"/v1/tasks/{task}/heartbeat", by="dispute-bot")
        assert heartbeat.status_code == 409
    assert broker.granted()


def test_a_key_kill_promotes_the_next_and_shows_another(world: World):
    broker = world.broker
    upcoming = next(
        key["kid"]
        for key in broker.get("/v1/keys", by="operator").json()
        if (key["purpose"], key["state"]) == ("token", "next")
    )
    assert broker.kill("key", world.kid).status_code == 201
    jwks = [key["kid"] for key in broker.get("/oauth2/jwks").json()["keys"]]
    assert world.kid not in jwks
    assert upcoming in jwks
    fresh = broker.granted()["access_token"]
    assert parse(fresh).header.kid == upcoming
    assert broker.active(fresh)
    broker.do("keys")
    states = {
        key["kid"]: key["state"] for key in broker.get("/v1/keys", by="operator").json() if key["purpose"] == "token"
    }
    assert states[world.kid] == "killed"
    assert sorted(states.values()) == ["active", "killed", "next"]
    assert len(broker.get("/oauth2/jwks").json()["keys"]) == 2
    # A token signed with the stolen key, whatever position it claims, stays dead; the kill never leaves the feed.
    for _ in range(3):
        broker.clock.forward(400)
        broker.do("housekeep")
    kills = broker.request("GET", "/v1/revocations", bearer=broker.home.operator()).json()["kills"]
    assert [["key", world.kid]] in [kill["matches"] for kill in kills]


def test_key_kills_one_after_the_other_never_leave_the_broker_without_a_key(broker: Broker):
    for _ in range(3):
        kid = parse(broker.granted()["access_token"]).header.kid
        assert broker.kill("key", kid).status_code == 201
        broker.do("keys")
    assert broker.granted()


def test_rotation_keeps_old_tokens_good(broker: Broker):
    old = broker.granted()["access_token"]
    rotated = broker.post("/v1/keys/rotate", {"reason": "quarterly"}, by="operator").json()
    new = broker.granted()["access_token"]
    assert parse(new).header.kid == rotated["active"] != parse(old).header.kid
    assert broker.active(old)
    assert {parse(old).header.kid, parse(new).header.kid} <= {
        key["kid"] for key in broker.get("/oauth2/jwks").json()["keys"]
    }
    broker.clock.forward(600)
    assert parse(old).header.kid not in {key["kid"] for key in broker.get("/oauth2/jwks").json()["keys"]}


@pytest.mark.parametrize(
    ("target", "value"),
    [
        ("agent", "no-bot"), ("owner", "nobody"), ("resource", "nothing"), ("task", "tsk_00000000_1"), ("task", "x"),
        ("grant", "grt_00000000_1"), ("grant", "dec_1"), ("key", "no-key"), ("agent", "x" * 30_000), ("task", "\x00"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dry_run", [True, False])
def test_what_does_not_exist_cannot_be_killed(shared: Broker, target: str, value: str, dry_run: bool):
    assert shared.kill(target, value, dry_run=dry_run).status_code == 404
    assert shared.events("killed") == []


@pytest.mark.parametrize(
    "body",
    [
        {"target": "all", "value": "x"}, {"target": "agent"}, {"target": "everything", "value": "x"},
        {"target": "agent", "value": "dispute-bot", "reason": "  "}, {"target": "all", "reason": "x" * 501},
        {"target": "all", "reason": "a\x1b[2Jb"}, {"target": "agent", "value": "dispute-bot", "hold": 1},
    ],
)  # fmt: skip
def test_a_kill_says_whom_and_why(shared: Broker, body: dict[str, Any]):
    assert shared.post("/v1/kills", {"reason": "x", **body}, by="operator").status_code == 400
    assert shared.events("killed") == []


def test_66_in_the_same_millisecond_the_position_decides(broker: Broker):
    before = broker.granted()["access_token"]
    broker.kill("agent", "dispute-bot", hold=False)
    after = broker.granted()["access_token"]  # the clock has not moved: same iat
    assert parse(before).unverified_claims["iat"] == parse(after).unverified_claims["iat"]
    assert not broker.active(before)
    assert broker.active(after)


@pytest.mark.parametrize("resource", [INVOICES, CREDITS])
def test_55_kills_among_concurrent_issuers(broker: Broker, resource: str):
    """Whatever the order, every token issued below the kill is dead and none is issued above it."""
    broker.session("operator")
    details = {"actions": ["credits:propose"], "parameters": {"invoice": "I", "amount_cents": 5}}
    fields = [
        broker.token_fields(resource=resource, details=details if resource == CREDITS else None) for _ in range(40)
    ]

    async def kill() -> Any:
        body = {"target": "agent", "value": "dispute-bot", "reason": "x"}
        return await broker.ask("POST", "/v1/kills", bearer=broker.session("operator"), json=body)

    asks: list[Any] = [broker.http.post("/oauth2/token", data=each) for each in fields]
    asks.insert(20, kill())
    answers = broker.gather(asks)
    position = answers[20].json()["position"]
    tokens = [answer.json()["access_token"] for answer in answers if "access_token" in answer.json()]
    assert all(parse(token).unverified_claims["seq"] < position for token in tokens)
    assert not any(broker.active(token) for token in tokens)
    assert all(event["seq"] < position for event in broker.events("issued"))


def test_archived_resources_are_killed_by_their_audience(world: World):
    receipt = world.broker.kill("resource", "archive").json()
    assert receipt["matches"] == [["resource", ARCHIVE]]
