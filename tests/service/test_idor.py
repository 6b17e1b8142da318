"""50: every id that someone else could name. What is another's does not exist: the same answer as for a missing id."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit import Broker, Home


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Broker, dict[str, str]]]:
    """A broker where dispute-bot has one of everything."""
    broker = Broker(Home(Path(tmp_path_factory.mktemp("idor")) / "broker"))
    task = broker.open_task()
    granted = broker.granted(task=task)
    pending = broker.credit(6000, task=task).json()
    never = broker.token(scope="invoices:write").json()
    implicit = broker.granted()
    ids = {
        "task": task,
        "implicit": implicit["task"],
        "decision": granted["decision_id"],
        "refusal": never["decision_id"],
        "pending": pending["decision_id"],
        "approval": pending["approval"]["id"],
        "grant": granted["decision_id"].replace("dec", "grt"),
        "token": granted["access_token"],
    }
    yield broker, ids
    broker.close()


def anonymous(text: str, *ids: str) -> str:
    """A body without the ids that differ from answer to answer."""
    for each in ids:
        text = text.replace(each, "ID")
    return re.sub(r"(req|dec)_[0-9a-f_]+", "X", text)


READS = {
    "task": ("GET", "/v1/tasks/{}"),
    "task-receipt": ("GET", "/v1/tasks/{}/receipt"),
    "implicit-receipt": ("GET", "/v1/tasks/{}/receipt"),
    "decision": ("GET", "/v1/decisions/{}"),
    "refusal": ("GET", "/v1/decisions/{}"),
    "pending": ("GET", "/v1/decisions/{}"),
    "grant": ("GET", "/v1/decisions/{}"),
    "approval": ("GET", "/v1/approvals/{}"),
}
WRITES = {"task-heartbeat": ("POST", "/v1/tasks/{}/heartbeat"), "task-end": ("POST", "/v1/tasks/{}/end")}


def missing(name: str) -> str:
    return re.sub(r"_\d+$", "_999999", name)


@pytest.mark.parametrize(
    ("what", "who"),
    [(what, who) for what in (*READS, *WRITES) for who in ("data-bot", "mesh-bot", "data-lead")
     if who != "data-lead" or what in READS],
)  # fmt: skip
def test_50_anothers_id_is_a_missing_id(crowd: tuple[Broker, dict[str, str]], what: str, who: str):
    broker, ids = crowd
    method, path = (READS | WRITES)[what]
    name = ids[what.split("-", maxsplit=1)[0]]
    theirs = broker.request(method, path.format(name), bearer=broker.session(who))
    nobodys = broker.request(method, path.format(missing(name)), bearer=broker.session(who))
    assert theirs.status_code == nobodys.status_code == 404
    assert anonymous(theirs.text, name) == anonymous(nobodys.text, missing(name))
    assert theirs.json()["decision_id"] != nobodys.json()["decision_id"]  # both are recorded
    own = broker.request(method, path.format(name), bearer=broker.session("dispute-bot")) if what in READS else None
    assert own is None or own.status_code == 200


def test_50_anothers_task_at_the_token_endpoint(crowd: tuple[Broker, dict[str, str]]):
    broker, ids = crowd
    before = broker.get(f"/v1/tasks/{ids['task']}/receipt", by="dispute-bot").json()["events"]
    bodies = set()
    for name in (ids["task"], missing(ids["task"]), ids["implicit"]):
        answer = broker.token("data-bot", task=name)
        assert answer.status_code == 400
        assert answer.json()["error"] == "unauthorized_client"
        bodies.add(anonymous(answer.text, name))
    assert len(bodies) == 1
    # Nor does a request that is refused earlier, for something else, get into the other's story.
    broker.token("data-bot", task=ids["task"], client_id="dispute-bot")
    proof = broker.home.assertion("data-bot")
    for _ in range(2):
        broker.token("data-bot", assertion=proof, task=ids["task"])
    assert broker.get(f"/v1/tasks/{ids['task']}/receipt", by="dispute-bot").json()["events"] == before


def test_50_anothers_task_as_parent(crowd: tuple[Broker, dict[str, str]]):
    broker, ids = crowd
    bodies = set()
    for name in (ids["task"], missing(ids["task"]), "tsk_00000000_1", "x"):
        answer = broker.post("/v1/tasks", {"purpose": "x", "parent": name}, by="data-bot")
        assert answer.status_code == 404
        bodies.add(anonymous(answer.text, name))
    assert len(bodies) == 1


def test_50_lists_show_ones_own(crowd: tuple[Broker, dict[str, str]]):
    broker, _ = crowd
    for path in ("/v1/tasks", "/v1/tasks?agent=dispute-bot", "/v1/approvals"):
        for who in ("data-bot", "data-lead"):
            assert broker.get(path, by=who).json() == []
        assert broker.get(path, by="dispute-bot").json() != []
    names = [each["id"] for each in broker.get("/v1/agents", by="data-lead").json()]
    assert names == ["data-bot", "mesh-bot", "other-bot"]


ACTS: dict[str, Callable[[Broker, str], Any]] = {
    "agent-pause": lambda broker, name: broker.post(f"/v1/agents/{name}/pause", {"reason": "x"}, by="data-lead"),
    "agent-preview": lambda broker, name: broker.post(
        f"/v1/agents/{name}/pause", {"reason": "x", "dry_run": True}, by="data-lead"
    ),
    "agent-resume": lambda broker, name: broker.post(f"/v1/agents/{name}/resume", {"reason": "x"}, by="data-lead"),
    "agent-kill": lambda broker, name: broker.kill("agent", name, by="data-lead"),
    "owner-kill": lambda broker, name: broker.kill("owner", name, by="data-lead"),
    "task-kill": lambda broker, name: broker.kill("task", name, by="data-lead"),
    "implicit-kill": lambda broker, name: broker.kill("task", name, by="data-lead"),
    "grant-kill": lambda broker, name: broker.kill("grant", name, by="data-lead"),
    "resource-kill": lambda broker, name: broker.kill("resource", name, by="data-lead"),
    "key-kill": lambda broker, name: broker.kill("key", name, by="data-lead"),
}
NAMES = {
    "agent": ("dispute-bot", "no-bot"),
    "owner": ("finance-platform", "nobody"),
    "resource": ("invoices", "nothing"),
}


@pytest.mark.parametrize("act", ACTS)
def test_50_an_operators_scope_ends_at_its_owners(crowd: tuple[Broker, dict[str, str]], act: str):
    broker, ids = crowd
    what = act.split("-", maxsplit=1)[0]
    kid = broker.get("/oauth2/jwks").json()["keys"][0]["kid"]
    names = NAMES.get(what) or ((kid, "no-key") if what == "key" else (ids[what], missing(ids[what])))
    answers = [ACTS[act](broker, name) for name in names]
    assert [answer.status_code for answer in answers] == [403, 403]
    assert len({anonymous(answer.text, *names) for answer in answers}) == 1
    assert broker.active(ids["token"])
    assert broker.get("/v1/holds", by="operator").json() == []


def test_a_scoped_operator_acts_within_its_scope(broker: Broker):
    token, task = broker.granted("data-bot")["access_token"], broker.open_task("data-bot")
    assert broker.kill("task", task, by="data-lead").status_code == 201
    assert broker.post("/v1/agents/data-bot/pause", {"reason": "x"}, by="data-lead").status_code == 201
    assert not broker.active(token)
    assert broker.post("/v1/agents/data-bot/resume", {"reason": "x"}, by="data-lead").status_code == 200
    hold = broker.kill("owner", "data-team", by="data-lead").json()["issuance"]["hold"]
    assert broker.post(f"/v1/holds/{hold}/lift", {"reason": "x"}, by="data-lead").status_code == 200
    for path, body in (("/v1/reload", {}), ("/v1/keys/rotate", {"reason": "x"})):
        assert broker.post(path, body, by="data-lead").status_code == 403
    assert broker.kill("all", by="data-lead").status_code == 403
    assert broker.get("/v1/ledger", by="data-lead").status_code == 403


def test_a_scoped_operator_cannot_lift_what_others_placed(broker: Broker):
    hold = broker.kill("agent", "dispute-bot").json()["issuance"]["hold"]
    answers = [broker.post(f"/v1/holds/{each}/lift", {"reason": "x"}, by="data-lead") for each in (hold, missing(hold))]
    assert [answer.status_code for answer in answers] == [403, 403]
    assert broker.token().json()["outcome"] == "held"


def test_rights_are_checked_for_each_act(broker: Broker):
    for path, body in {
        "/v1/kills": {"target": "all", "reason": "x"},
        "/v1/agents/dispute-bot/pause": {"reason": "x"},
        "/v1/agents/dispute-bot/resume": {"reason": "x"},
        "/v1/reload": {},
        "/v1/keys/rotate": {"reason": "x"},
    }.items():
        size = broker.size
        answer = broker.post(path, body, by="reader")
        assert answer.status_code == 403
        assert [event["type"] for event in broker.events(start=size)][-1:] == ["refused"]
    assert broker.granted()


def test_break_glass_only_holds_and_kills_and_raises_an_alarm(broker: Broker):
    home = broker.home
    killed = broker.request("POST", "/v1/kills", bearer=home.operator("break-glass"),
                            json={"target": "agent", "value": "dispute-bot", "reason": "night"})  # fmt: skip
    assert killed.status_code == 201
    (alarm,) = [event for event in broker.events("alarm") if event["alarm"] == "break_glass"]
    assert (alarm["actor"], alarm["subject"]) == ("break-glass", killed.json()["id"])
    hold = killed.json()["issuance"]["hold"]
    for path, body in {
        "/v1/agents/dispute-bot/resume": {"reason": "x"},
        f"/v1/holds/{hold}/lift": {"reason": "x"},
        "/v1/reload": {},
        "/v1/keys/rotate": {"reason": "x"},
    }.items():
        assert broker.post(path, body, by="break-glass").status_code == 403
    assert broker.get("/v1/holds", by="break-glass").json()[0]["id"] == hold
