"""Is this credential dead? The store, introspection, the receipts' counts and an offline verifier each answer that in
their own way, over one ledger. Random histories: they must agree with each other, and with a model that knows only the
words of the rule.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.ledger import make_id, views
from broker.ledger.commands.admin import FirstKeys, LoadBundle, NewKey, PublishNextKey, RaiseFloor, RotateKeys
from broker.ledger.commands.issue import Asked, Fail, Issue, Issued, Verdict
from broker.ledger.commands.kills import Kill, Killed, LiftHolds
from broker.ledger.commands.tasks import EndTask, ExpireTasks, OpenTask, TaskOpened
from broker.ledger.sqlite import SqliteLedger
from broker.model import Agent, AgentCaller, Ask, Limits, Selector, Target, Workload
from broker.revocation import claims_of
from broker.sdk.view import RevocationView
from broker.web.feed import Feed
from broker.wire import Match
from tests.ledger.kit import ORIGIN, Clock

AGENTS = {"a1": "alpha", "a2": "alpha", "b1": "beta"}
RESOURCES = {"r1": "https://r1.example", "r2": "https://r2.example"}


@dataclass(eq=False)
class Token:
    """A credential of the model: what it carries, and whether the rule has ended it."""

    issued: Issued
    agent: str
    resource: str
    under: str | None  # explicit task
    dead: bool = False


@dataclass
class World:
    """One ledger, and the model beside it."""

    ledger: SqliteLedger
    clock: Clock
    view: RevocationView
    feed: Feed
    tokens: list[Token] = field(default_factory=list)
    parents: dict[str, str | None] = field(default_factory=dict)  # explicit task -> the one above it
    keys: int = 0
    killed_keys: list[str] = field(default_factory=list)

    # --- What happens ---

    def commit(self, command: Any) -> Any:
        (outcome,) = self.ledger.commit([command])
        assert not isinstance(outcome, BaseException), outcome
        return outcome

    def new_key(self) -> NewKey:
        self.keys += 1
        return NewKey(f"kid-{self.keys}", "token", {}, b"")

    def open_task(self, agent: str, parent: str | None, seconds: int) -> None:
        opened = self.commit(OpenTask(_caller(agent), "p", "manual", seconds * 1000, parent=parent))
        if isinstance(opened, TaskOpened):
            self.parents[opened.id] = parent

    def issue(self, agent: str, resource: str, task: str | None, seconds: int, *, fails: bool) -> None:
        asked = Asked(agent, AGENTS[agent], _WORKLOAD, task, Ask(resource, ("do",)))
        issued = self.commit(Issue(asked, _VERDICT, RESOURCES[resource], seconds * 1000))
        if isinstance(issued, Issued) and fails:
            self.commit(Fail(issued, "test"))
        elif isinstance(issued, Issued):
            self.tokens.append(Token(issued, agent, resource, task))

    def kill(self, selector: Selector, *, hold: bool) -> None:
        killed = self.commit(
            Kill(
                selector=selector,
                reason="test",
                actor="op",
                hold=hold,
                registry_hash="registry",
                agents=[name for name, owner in AGENTS.items() if selector.value in (name, owner)],
                audience=RESOURCES.get(selector.value),
            )
        )
        if not isinstance(killed, Killed):
            return
        for token in self.unexpired():
            token.dead |= self.covers(selector, token)
        if selector.target is Target.KEY:
            self.killed_keys.append(selector.value)
            self.commit(PublishNextKey(self.new_key()))
        if hold:
            self.commit(LiftHolds("op", "test", selector=selector))

    def end(self, task: str) -> None:
        self.commit(EndTask(task, None, "done"))
        self.sweep(task)

    def pass_time(self, seconds: int) -> None:
        self.clock.now += seconds * 1000
        for over in self.commit(ExpireTasks()):
            self.sweep(over.id)

    def sweep(self, task: str) -> None:
        for token in self.unexpired():
            token.dead |= task in self.above(token)

    # --- The rule, in the words of the design ---

    def unexpired(self) -> list[Token]:
        """What a kill now can still end."""
        return [token for token in self.tokens if token.issued.exp * 1000 > self.clock.now]

    def covers(self, selector: Selector, token: Token) -> bool:
        issued = token.issued
        carried = {
            Target.ALL: {""},
            Target.AGENT: {token.agent},
            Target.OWNER: {AGENTS[token.agent]},
            Target.RESOURCE: {token.resource},
            Target.TASK: {issued.task, *self.above(token)},
            Target.GRANT: {issued.jti},
            Target.KEY: {issued.kid},
        }
        return selector.value in carried[selector.target]

    def above(self, token: Token) -> Iterator[str]:
        task = token.under
        while task is not None:
            yield task
            task = self.parents[task]

    # --- What must agree ---

    def follow(self) -> None:
        """The offline verifier connects, hears what it has missed, and is cut off again."""
        cursor = self.view.cursor()
        self.view.connecting(cursor)
        listener = self.feed.connect(instance="i", verifier="v", stamp=self.view.stamp(), cursor=cursor, hello={})
        while not listener.events.empty():
            lines = (listener.events.get_nowait() or b"").decode().splitlines()
            parts = dict(line.split(": ", 1) for line in lines if line)
            self.view.apply(parts["event"], orjson.loads(parts["data"]))

    def check(self) -> None:
        self.follow()
        with self.ledger.read() as r:
            head = r.head()
            kill_map = views.kill_map(r)
            prefix = make_id("grt", head.epoch, 0)[:-1]
            alive = []
            for token in self.tokens:
                issued = token.issued
                row = views.grant(r, issued.seq)
                assert row is not None
                claims = claims_of(row, prefix)
                assert claims["jti"] == issued.jti
                expired = issued.exp * 1000 <= head.time
                killed = views.kill_of(r, claims, issued.kid) is not None
                assert killed == token.dead or (killed and expired)
                acted = {**claims, "sub": "x", "client_id": "x", "act": {"sub": "y", "act": {"sub": token.agent}}}
                assert bool(views.kill_of(r, acted, issued.kid)) == killed, "whoever acts through others counts"
                assert not issued.seq < head.floor or expired, "the floor passed a live credential"
                if not expired:
                    assert (kill_map.dead(claims, issued.kid) is not None) == token.dead
                    assert (self.view.kills.dead(claims, issued.kid) is not None) == token.dead
                    alive += [] if token.dead else [token]
                elif token.dead:
                    refused = issued.seq < self.view.floor or self.view.kills.dead(claims, issued.kid) is not None
                    assert refused, "an offline verifier whose clock is behind would take it"
            for kid in self.killed_keys:  # whoever stole it chooses what the token says
                forged = {"sub": "a1", "client_id": "a1", "aud": "x", "jti": "x", "task": "x", "seq": head.size + 9}
                assert views.kill_of(r, forged, kid)
                assert kill_map.dead(forged, kid)
                assert self.view.kills.dead(forged, kid)
            counted = [
                ([(Match.ALL, "")], alive),
                ([(Match.AGENT, "a1"), (Match.AGENT, "b1")], [t for t in alive if t.agent != "a2"]),
                ([(Match.RESOURCE, RESOURCES["r1"])], [t for t in alive if t.resource == "r1"]),
                ([(Match.KEY, head.active_kid)], [t for t in alive if t.issued.kid == head.active_kid]),
            ]
            for matches, expected in counted:
                counts = views.live_counts(r, matches)
                assert sum(each.count for each in counts) == len(expected), matches


_WORKLOAD = Workload("idp", "oidc", "https://idp.example", "w", {}, expires=1 << 60)
_VERDICT = Verdict("automatic", ["p"], "policies", "registry")


def _caller(agent: str) -> AgentCaller:
    noun = Agent(agent, AGENTS[agent], "p", "w", (), {}, None, Limits())
    return AgentCaller(noun, _WORKLOAD)


@contextmanager
def new_world() -> Iterator[World]:
    with tempfile.TemporaryDirectory() as folder:
        clock = Clock()
        path = Path(folder, "ledger.db")
        SqliteLedger.create(path, now=clock, origin=ORIGIN)
        ledger = SqliteLedger.open(path, now=clock)
        try:
            feed = Feed(ledger=ledger, writer=None, now=clock)  # type: ignore[arg-type]  # it only reads
            world = World(ledger, clock, RevocationView(now=clock, elapsed=lambda: clock.now * 1_000_000), feed)
            for kind in ("registry", "policies"):
                world.commit(LoadBundle(kind, kind, b"{}", [], "op"))
            world.commit(FirstKeys([world.new_key()]))
            world.commit(PublishNextKey(world.new_key()))
            yield world
        finally:
            ledger.close()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_every_answer_to_whether_a_credential_is_dead_agrees(data: st.DataObject) -> None:
    with new_world() as world:
        for _ in range(data.draw(st.integers(10, 40))):
            step(world, data)
        world.check()


_ACTS = ["issue"] * 5 + ["task"] * 3 + ["kill"] * 2 + ["end", "time", "rotate", "keep", "ask"]


def step(world: World, data: st.DataObject) -> None:
    agent = data.draw(st.sampled_from(sorted(AGENTS)))
    task = data.draw(st.sampled_from([None, *world.parents]))
    seconds = data.draw(st.integers(1, 40))
    match data.draw(st.sampled_from(_ACTS)):
        case "issue":
            resource = data.draw(st.sampled_from(sorted(RESOURCES)))
            world.issue(agent, resource, task, seconds, fails=data.draw(st.integers(0, 9)) == 0)
        case "task":
            world.open_task(agent, task, seconds)
        case "kill":
            selectors = _selectors(world)
            target = data.draw(st.sampled_from(list(selectors)))
            selector = Selector(target, data.draw(st.sampled_from(selectors[target])))
            world.kill(selector, hold=target.holds and data.draw(st.booleans()))
        case "end" if task is not None:
            world.end(task)
        case "time":
            world.pass_time(seconds // 4)
        case "rotate":
            world.commit(RotateKeys("token", world.new_key(), "op", "test"))
        case "keep":
            world.commit(RaiseFloor())
        case "ask":
            world.check()


def _selectors(world: World) -> dict[Target, list[str]]:
    issued = [token.issued for token in world.tokens]
    values = {
        Target.ALL: [""],
        Target.AGENT: list(AGENTS),
        Target.OWNER: ["alpha", "beta"],
        Target.RESOURCE: list(RESOURCES),
        Target.TASK: [*world.parents, *(each.task for each in issued)],
        Target.GRANT: [each.jti for each in issued],
        Target.KEY: [each.kid for each in issued],
    }
    return {target: list(dict.fromkeys(found)) for target, found in values.items() if found}
