"""Kills, holds and what verifiers report of them.

A kill is one event at position K and a handful of match rows, fixed in its own transaction, however many credentials it
ends. Kills above task level, and holds, change the guard version: a batch decided before must look again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from broker.ledger import Reader, Tx, make_id, parse_id
from broker.ledger.commands.admin import activate
from broker.ledger.commands.credentials import end_covered
from broker.ledger.commands.guards import Stale, forget_holds
from broker.ledger.commands.tasks import close_rows, descendants
from broker.model import Selector, Target, TaskState
from broker.wire import Match

NO_NEXT_KEY = "no_next_key"
"""Why a signing key cannot be killed yet: no other one is published to take over."""

CONTACT_SLACK_MS = 2_000
"""Last contacts are written once a second: no instance with a short bound may be missing from a receipt for that."""

Covers = tuple[tuple[tuple[Match, str], ...], list[str]]
"""What a kill compares with tokens, and the open tasks that it ends."""


@dataclass(frozen=True, slots=True)
class Killed:
    """A committed kill. `hold` is the id of the hold that stands with it."""

    id: str
    seq: int
    at: int
    hold: str | None
    tasks: int
    matches: tuple[tuple[Match, str], ...]


@dataclass(frozen=True, slots=True)
class KillRefused:
    """The thing to kill does not exist, or is over."""

    reason: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Kill:
    """End every credential that matches, and with `hold` stop issuance for it too.

    `agents` are the agents that the selector stands for (one for an agent, all of an owner's), `audience` the
    resource's; both are read from the registry `registry_hash`, so that a reload in between makes this stale. What was
    registered earlier is looked for in the ledger: credentials outlive the registration that they were issued under.
    """

    selector: Selector
    reason: str
    actor: str
    hold: bool
    registry_hash: str
    agents: Sequence[str] = ()
    audience: str | None = None
    own_grants_of: str | None = None  # revocation by a client (RFC 7009): only its own credentials exist for it
    alarm: bool = False  # a break-glass key did this
    traceparent: str | None = None  # W3C, as the request brought it

    def apply(self, tx: Tx) -> Killed | KillRefused | Stale:
        if tx.head.registry_hash != self.registry_hash:
            return Stale(tx.head.registry_hash, tx.head.policy_hash)
        found = self.covers(tx)
        if isinstance(found, KillRefused):
            return found
        matches, tasks = found
        if self._over(tx):
            return KillRefused("grant_over", f"Grant {self.selector.value} is over.")
        if self.selector.target is Target.KEY and not self._replace_key(tx):
            return KillRefused(NO_NEXT_KEY, "No next key is published to take over; rotate once, then kill this one.")
        seq = tx.next_seq()
        kill_id = make_id("kil", tx.epoch, seq)
        hold = make_id("hld", tx.epoch, seq) if self.hold else None
        body: dict[str, Any] = {
            "kill": kill_id,
            "target": self.selector.target.value,
            "value": self.selector.value,
            "matches": [[kind.value, value] for kind, value in matches],
            "actor": self.actor,
            "reason": self.reason,
            "tasks": len(tasks),
        }
        if hold is not None:
            body["hold"] = hold
        if self.traceparent is not None:
            body["traceparent"] = self.traceparent
        tx.append("killed", body)
        close_rows(tx, tasks, TaskState.KILLED, seq, self.reason)
        killed = Killed(kill_id, seq, tx.now, hold, len(tasks), matches)
        self._project(tx, killed)
        if self.alarm:
            sentence = f"Break-glass key {self.actor} was used: {self.reason}"
            tx.append("alarm", {"alarm": "break_glass", "sentence": sentence, "actor": self.actor, "subject": kill_id})
        return killed

    def covers(self, tx: Tx | Reader) -> Covers | KillRefused:
        """What the kill compares with tokens, and the open tasks it ends. Only reads: a dry run asks the same."""
        target, value = self.selector.target, self.selector.value
        if target is Target.ALL:
            rows = tx.execute("SELECT id FROM tasks WHERE state = 'active'").fetchall()
            return ((Match.ALL, ""),), [row[0] for row in rows]
        if target is Target.RESOURCE:
            return self._resource(tx, value)
        if target is Target.KEY:
            return self._key(tx, value)
        if target is Target.GRANT:
            return self._grant(tx, value)
        if target is Target.TASK:
            row = tx.execute("SELECT state FROM tasks WHERE id = ?", (value,)).fetchone()
            if row is None:
                return self._implicit_task(tx, value)
            family = [value, *descendants(tx, [value])]
            return tuple((Match.TASK, task) for task in family), family if row[0] == TaskState.ACTIVE else []
        agents = self.agents
        if target is Target.AGENT and not agents:
            if not _left_something(tx, value):
                return KillRefused("agent_not_found", f"There is no agent {value[:80]}.")
            agents = (value,)
        own: list[str] = []
        for agent in agents:
            rows = tx.execute("SELECT id FROM tasks WHERE agent = ? AND state = 'active'", (agent,)).fetchall()
            own += [row[0] for row in rows]
        # Child tasks that run under other agents fall with their parents; the agents' own fall by their subject.
        below = descendants(tx, own)
        matches = (*((Match.AGENT, agent) for agent in agents), *((Match.TASK, task) for task in below))
        return matches, [*own, *below]

    def _resource(self, tx: Tx | Reader, resource: str) -> Covers | KillRefused:
        """Its audience, and those that it had when what is still alive was issued."""
        rows = tx.execute(
            "SELECT DISTINCT audience FROM grants WHERE seq >= (SELECT floor FROM head) AND resource = ?", (resource,)
        )
        audiences = {row[0] for row in rows.fetchall()} | ({self.audience} if self.audience is not None else set())
        rows = tx.execute(
            "SELECT DISTINCT audience FROM external_grants WHERE gone IS NULL AND resource = ?", (resource,)
        )
        audiences |= {row[0] for row in rows.fetchall()}
        if not audiences:
            return KillRefused("resource_not_found", f"There is no resource {resource[:80]}.")
        return tuple((Match.RESOURCE, audience) for audience in sorted(audiences)), []

    def _grant(self, tx: Tx | Reader, jti: str) -> Covers | KillRefused:
        missing = KillRefused("grant_not_found", f"There is no grant {jti}.")
        seq = seq_of(tx, jti, "grt")
        if seq is None:
            return missing
        row = tx.execute(
            "SELECT agent FROM grants WHERE seq = ? UNION ALL SELECT agent FROM external_grants WHERE seq = ?",
            (seq, seq),
        ).fetchone()
        if row is None or (self.own_grants_of is not None and row[0] != self.own_grants_of):
            return missing
        return ((Match.GRANT, jti),), []

    def _over(self, tx: Tx) -> bool:
        """Whether a client revokes what it has revoked before, or what has expired: no news for any verifier."""
        return self.own_grants_of is not None and (
            tx.execute(
                "SELECT 1 FROM grants WHERE seq = ? AND (expires <= ?"
                " OR EXISTS (SELECT 1 FROM kill_matches WHERE kind = 'grant' AND value = ?))",
                (seq_of(tx, self.selector.value, "grt"), tx.now, self.selector.value),
            ).fetchone()
            is not None
        )

    def _implicit_task(self, tx: Tx | Reader, task: str) -> Covers | KillRefused:
        seq = seq_of(tx, task, "tsk")
        known = tx.execute(
            "SELECT 1 FROM grants WHERE seq = ? AND task = ?"
            " UNION ALL SELECT 1 FROM external_grants WHERE seq = ? AND task = ?",
            (seq, task, seq, task),
        ).fetchone()
        if seq is None or known is None:
            return KillRefused("task_not_found", f"There is no task {task}.")
        return ((Match.TASK, task),), []

    def _key(self, tx: Tx | Reader, kid: str) -> Covers | KillRefused:
        if tx.execute("SELECT 1 FROM keys WHERE kid = ? AND purpose = 'token'", (kid,)).fetchone() is None:
            return KillRefused("key_not_found", f"There is no token signing key {kid}.")
        return ((Match.KEY, kid),), []

    def _replace_key(self, tx: Tx) -> bool:
        """Take the key out of use; if it was the active one, the published next key takes over. False without one."""
        kid = self.selector.value
        states = dict(tx.execute("SELECT state, kid FROM keys WHERE purpose = 'token'").fetchall())
        if states.get("active") == kid:
            if "next" not in states:
                return False
            activate(tx, states["next"], "token", self.actor, "the active key was killed")
        tx.execute("UPDATE keys SET state = 'killed', retired = ? WHERE kid = ?", (tx.now, kid))
        return True

    def _project(self, tx: Tx, killed: Killed) -> None:
        seq, hold = killed.seq, killed.hold
        target, value = self.selector.target.value, self.selector.value
        tx.put(
            "INSERT INTO kills (seq, id, target, value, at, actor, reason, hold, tasks, floor)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (seq, killed.id, target, value, tx.now, self.actor, self.reason, hold, killed.tasks, tx.head.floor),
        )
        for kind, match_value in killed.matches:
            tx.put("INSERT INTO kill_matches (seq, kind, value) VALUES (?, ?, ?)", (seq, kind.value, match_value))
        end_covered(tx, killed.matches, seq)
        tx.execute(
            "INSERT INTO kill_expected (seq, instance, verifier, mode, bound_ms, leeway_ms)"
            " SELECT ?, instance, verifier, mode, bound_ms, leeway_ms FROM instances"
            " WHERE last_contact + bound_ms >= ?",
            (seq, tx.now - CONTACT_SLACK_MS),
        )
        if hold is not None:
            tx.put(
                "INSERT INTO holds (id, target, value, placed_seq, placed, actor, reason) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (hold, target, value, seq, tx.now, self.actor, self.reason),
            )
        if hold is not None or self.selector.target not in {Target.TASK, Target.GRANT}:
            forget_holds(tx)


@dataclass(frozen=True, slots=True)
class LiftHolds:
    """Lift one hold by id, or every hold on exactly this selector (resume). Nothing that was killed revives."""

    actor: str
    reason: str
    hold: str | None = None
    selector: Selector | None = None

    def apply(self, tx: Tx) -> list[str]:
        """The ids lifted now: empty when none stands."""
        if self.hold is not None:
            rows = tx.execute(
                "SELECT id, target, value FROM holds WHERE id = ? AND lifted_seq IS NULL", (self.hold,)
            ).fetchall()
        else:
            assert self.selector is not None
            rows = tx.execute(
                "SELECT id, target, value FROM holds WHERE target = ? AND value = ? AND lifted_seq IS NULL",
                (self.selector.target.value, self.selector.value),
            ).fetchall()
        for hold, target, value in rows:
            body = {"hold": hold, "target": target, "value": value, "actor": self.actor, "reason": self.reason}
            seq = tx.append("hold.lifted", body)
            tx.execute("UPDATE holds SET lifted_seq = ? WHERE id = ?", (seq, hold))
        if rows:
            forget_holds(tx)
        return [row[0] for row in rows]


@dataclass(frozen=True, slots=True)
class Ack:
    """One instance reports that it applied one kill, so many milliseconds after the kill's commit."""

    kill_seq: int
    instance: str
    verifier: str
    ms: float


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """Record what verifier instances reported. Many acknowledgements share one event."""

    acks: Sequence[Ack]

    def apply(self, tx: Tx) -> int:
        """How many were new."""
        seq = tx.next_seq()
        new = []
        for ack in self.acks:
            cursor = tx.execute(
                "UPDATE kill_expected SET acked_ms = ?, acked_seq = ?"
                " WHERE seq = ? AND instance = ? AND acked_ms IS NULL",
                (round(ack.ms), seq, ack.kill_seq, ack.instance),
            )
            if cursor.rowcount == 1:
                new.append(
                    {"kill": ack.kill_seq, "instance": ack.instance, "verifier": ack.verifier, "ms": round(ack.ms)}
                )
        if new:
            tx.append("acknowledged", {"acks": new})
        return len(new)


def _left_something(tx: Tx | Reader, agent: str) -> bool:
    """Whether an agent that is not registered any more has an open task, or a credential that may still live."""
    found = tx.execute(
        "SELECT EXISTS (SELECT 1 FROM tasks WHERE agent = ? AND state = 'active')"
        " OR EXISTS (SELECT 1 FROM grants WHERE seq >= (SELECT floor FROM head) AND agent = ?)"
        " OR EXISTS (SELECT 1 FROM external_grants WHERE gone IS NULL AND agent = ?)",
        (agent, agent, agent),
    ).fetchone()
    return bool(found[0])


def seq_of(tx: Tx | Reader, text: str, kind: str) -> int | None:
    """The position in an id of this kind and this epoch; None for anything else."""
    try:
        parsed = parse_id(text)
    except ValueError:
        return None
    (epoch,) = tx.execute("SELECT epoch FROM head").fetchone()
    return parsed.seq if (parsed.kind, parsed.epoch) == (kind, epoch) else None
