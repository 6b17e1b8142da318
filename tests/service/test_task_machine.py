"""Tasks as a state machine, on the real broker: whatever happens in whatever order, credentials live under active tasks
of their own agent only, and nothing that ended comes back.
"""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from broker.jose import parse
from tests.kit import ARCHIVE, INVOICES, Broker, Home

AGENTS = ("dispute-bot", "data-bot")
FINAL = {"ended", "expired", "killed"}


class Task:
    """What the model knows of one task."""

    def __init__(self, body: dict[str, Any], agent: str, parent: "Task | None") -> None:
        self.id, self.agent, self.parent = body["id"], agent, parent
        self.deadline, self.beat_ms = body["deadline"], body.get("heartbeat_seconds", 0) * 1000
        self.beaten, self.state = body["opened"], "active"
        self.issued: list[dict[str, Any]] = []

    def due(self) -> int:
        return min(self.deadline, self.beaten + self.beat_ms) if self.beat_ms else self.deadline


class Tasks(RuleBasedStateMachine):
    tasks = Bundle("tasks")

    def __init__(self) -> None:
        super().__init__()
        self.path = Path(tempfile.mkdtemp())
        self.broker = Broker(Home(self.path / "broker"))
        self.known: list[Task] = []
        self.tokens: list[tuple[str, dict[str, Any], Task | None]] = []
        self.dead: set[str] = set()
        self.paused: set[str] = set()

    def teardown(self) -> None:
        self.broker.close()
        shutil.rmtree(self.path)

    # --- The model ---

    def proof(self, agent: str) -> str:
        return self.broker.home.assertion(agent)

    def finish(self, task: Task, state: str) -> None:
        """End a task and all below it."""
        if task.state == "active":
            task.state = state
            for child in self.known:
                if child.parent is task:
                    self.finish(child, state)

    def sweep(self) -> None:
        """What the broker does by itself, several times a second."""
        self.broker.do("expire_tasks")
        for task in self.known:
            if task.state == "active" and task.due() <= self.broker.clock.now:
                self.finish(task, "expired")

    # --- What can happen ---

    @initialize()
    def begin(self) -> None:
        self.broker.run(self.broker.ask("GET", "/livez"))

    @rule(
        target=tasks,
        agent=st.sampled_from(AGENTS),
        deadline=st.sampled_from([None, 20, 200, 4000]),
        beat=st.sampled_from([None, 10]),
    )
    def open(self, agent: str, deadline: int | None, beat: int | None) -> Any:
        return self._open(agent, None, deadline, beat)

    @rule(target=tasks, parent=tasks, deadline=st.sampled_from([None, 20]), agent=st.sampled_from(AGENTS))
    def open_child(self, parent: Task, deadline: int | None, agent: str) -> Any:
        return self._open(agent, parent, deadline, None)

    def _open(self, agent: str, parent: Task | None, deadline: int | None, beat: int | None) -> Any:
        body = {"purpose": "work", "deadline_seconds": deadline, "heartbeat_seconds": beat}
        body |= {"parent": parent.id} if parent else {}
        answer = self.broker.request("POST", "/v1/tasks", bearer=self.proof(agent), json=body)
        if agent in self.paused:
            assert answer.status_code == 403
        elif parent is not None and parent.agent != agent:
            assert answer.status_code == 404
        elif parent is not None and parent.state != "active":
            assert answer.status_code == 409
        else:
            assert answer.status_code == 201, answer.text
            self.known.append(Task(answer.json(), agent, parent))
            assert parent is None or self.known[-1].deadline <= parent.deadline
            return self.known[-1]
        return multiple()

    @rule(task=tasks, agent=st.sampled_from(AGENTS))
    def issue(self, task: Task, agent: str) -> None:
        answer = self.broker.token(agent, assertion=self.proof(agent), task=task.id)
        if agent in self.paused:
            assert answer.json().get("outcome") == "held" or agent != task.agent
        elif agent != task.agent:
            assert answer.json()["error"] == "unauthorized_client"
        elif task.state != "active":
            assert answer.json()["outcome"] == "task_over"
        elif answer.status_code == 200:
            self._remember(answer.json(), task)
            return
        else:
            assert answer.json()["outcome"] == "too_short"
        assert answer.status_code == 400

    @rule(agent=st.sampled_from(AGENTS))
    def issue_without_a_task(self, agent: str) -> None:
        answer = self.broker.token(agent, assertion=self.proof(agent))
        assert (answer.status_code == 200) == (agent not in self.paused)
        if answer.status_code == 200:
            self._remember(answer.json(), None)

    def _remember(self, body: dict[str, Any], task: Task | None) -> None:
        claims = parse(body["access_token"]).unverified_claims
        self.tokens.append((body["access_token"], claims, task))
        if task is not None:
            assert claims["task"] == task.id
            assert claims["sub"] == task.agent
            assert claims["exp"] * 1000 <= task.deadline
            task.issued.append(claims)

    @rule(task=tasks, agent=st.sampled_from(AGENTS))
    def heartbeat(self, task: Task, agent: str) -> None:
        answer = self.broker.request("POST", f"/v1/tasks/{task.id}/heartbeat", bearer=self.proof(agent))
        expected = 404 if agent != task.agent else 200 if task.state == "active" else 409
        assert answer.status_code == expected
        if expected == 200:
            task.beaten = self.broker.clock.now
            assert answer.json()["next_before"] == task.due()

    @rule(task=tasks, agent=st.sampled_from(AGENTS))
    def end(self, task: Task, agent: str) -> None:
        answer = self.broker.request("POST", f"/v1/tasks/{task.id}/end", bearer=self.proof(agent))
        assert answer.status_code == (200 if agent == task.agent else 404)
        if agent == task.agent:
            self.finish(task, "ended")
            assert answer.json()["state"] == task.state

    @rule(task=tasks)
    def kill_task(self, task: Task) -> None:
        body = {"target": "task", "value": task.id, "reason": "x"}
        answer = self.broker.request("POST", "/v1/kills", bearer=self.broker.home.operator(), json=body)
        assert answer.status_code == 201
        self.finish(task, "killed")

    @rule(agent=st.sampled_from(AGENTS))
    def pause(self, agent: str) -> None:
        path = f"/v1/agents/{agent}/pause"
        assert (
            self.broker.request("POST", path, bearer=self.broker.home.operator(), json={"reason": "x"}).status_code
            == 201
        )
        self.paused.add(agent)
        for task in self.known:
            if task.agent == agent:
                self.finish(task, "killed")
        self.dead |= {token for token, claims, _ in self.tokens if claims["sub"] == agent}

    @rule(agent=st.sampled_from(AGENTS))
    def resume(self, agent: str) -> None:
        path = f"/v1/agents/{agent}/resume"
        answer = self.broker.request("POST", path, bearer=self.broker.home.operator(), json={"reason": "x"})
        assert answer.status_code == (200 if agent in self.paused else 409)
        self.paused.discard(agent)

    @rule(seconds=st.sampled_from([1, 9, 30, 150, 1000]))
    def wait(self, seconds: int) -> None:
        self.broker.clock.forward(seconds)
        self.sweep()
        self.broker.do("housekeep")

    @rule(seconds=st.sampled_from([3600, 10]))
    def clock_steps_back_and_forth(self, seconds: int) -> None:
        self.broker.clock.now -= seconds * 1000
        self.broker.do("expire_tasks", "housekeep")
        self.check_tokens()
        self.broker.clock.now += seconds * 1000

    @rule()
    def restart(self) -> None:
        self.broker.close()
        self.broker = Broker(self.broker.home)

    @rule(task=consumes(tasks))
    def receipt_agrees(self, task: Task) -> None:
        receipt = self.broker.request("GET", f"/v1/tasks/{task.id}/receipt", bearer=self.broker.home.operator()).json()
        assert receipt["state"] == task.state
        issued = [event for event in receipt["events"] if event["type"] == "issued"]
        assert [event["jti"] for event in issued] == [claims["jti"] for claims in task.issued]
        assert (receipt.get("ended") is not None) == (task.state in FINAL)
        for event in issued:
            alive = self.alive(next(each for each in self.tokens if each[1]["jti"] == event["jti"]))
            assert (event["after"]["state"] == "live") == alive

    # --- What always holds ---

    def alive(self, issued: tuple[str, dict[str, Any], Task | None]) -> bool:
        token, claims, task = issued
        expired = claims["exp"] * 1000 <= self.broker.clock.now
        return not (expired or token in self.dead or (task is not None and task.state != "active"))

    @invariant()
    def check_tokens(self) -> None:
        now_alive = set()
        for each in self.tokens[-6:]:
            audience = "vault-door" if each[1]["aud"] == ARCHIVE else "billing"
            assert each[1]["aud"] in (ARCHIVE, INVOICES)
            proof = self.broker.home.assertion(audience)
            answer = self.broker.form("/oauth2/introspect", {"token": each[0]}, bearer=proof)
            if answer.status_code == 200 and answer.json()["active"]:
                now_alive.add(each[0])
        expected = {each[0] for each in self.tokens[-6:] if self.alive(each)}
        assert now_alive <= expected
        self.dead |= {each[0] for each in self.tokens if not self.alive(each)}

    @invariant()
    def living_tokens_work(self) -> None:
        for each in self.tokens[-2:]:
            if self.alive(each):
                audience = "vault-door" if each[1]["aud"] == ARCHIVE else "billing"
                answer = self.broker.form(
                    "/oauth2/introspect", {"token": each[0]}, bearer=self.broker.home.assertion(audience)
                )
                assert answer.json() == answer.json() | {"active": True}


Tasks.TestCase.settings = settings(
    max_examples=12,
    stateful_step_count=25,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),  # a story of 25 steps is read, not shrunk for minutes
    suppress_health_check=list(HealthCheck),
)
TestTasks = Tasks.TestCase
