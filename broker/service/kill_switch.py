"""The kill switch: pause, kill, hold, resume, and the receipts that prove what happened.

A kill is committed first and explained after: counting what it ended never delays it.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Protocol

from broker.errors import Conflict, NotFound, Unavailable
from broker.ledger import Ledger, LedgerUnavailable, Reader, views
from broker.ledger.commands.guards import Stale
from broker.ledger.commands.kills import NO_NEXT_KEY, Kill, Killed, KillRefused, LiftHolds
from broker.ledger.external_views import external_covered, external_grant_by_id
from broker.ledger.writer import Writer
from broker.model import MATCH_OF, AgentCaller, Caller, OperatorCaller, Right, Selector, Target
from broker.revocation import Covered, kill_receipt
from broker.rules import Rules, RulesInForce
from broker.service.callers import need
from broker.service.reasons import checked_reason
from broker.telemetry import tracing
from broker.wire import Match

_TRY_AGAIN = 8
_COMMIT_WITHIN_S = 2.5
"""How long a kill waits for its commit before it goes provisional: a disk that hangs must not hold it up."""
_COUNT_WITHIN_S = 0.005
_COUNTED_AT_ONCE = 40_000
"""How long the answer to a kill waits for the count of what it ended, and in how many events that can be counted."""
_REMEMBERED = 1_000


class Provisional(Protocol):
    """What puts a kill in force in this broker when the ledger cannot be written (`web.provisional`)."""

    def put(self, kill: Kill, matches: tuple[tuple[Match, str], ...]) -> dict[str, Any]:
        """In force here, spooled, told to workers and verifiers; the answer says that it is not durable yet."""
        ...

    def answer(self, provisional_id: str) -> dict[str, Any] | None:
        """What can be said of one that waits; None for an unknown id."""
        ...

    def became(self, provisional_id: str) -> str | None:
        """The durable kill that replaced it."""
        ...


class KillSwitch:
    """Verbs of operators that end credentials. No workload identity reaches them."""

    def __init__(
        self,
        *,
        rules: RulesInForce,
        ledger: Ledger,
        writer: Writer,
        provisional: Provisional,
        max_life_ms: int,
        now: Callable[[], int],
    ) -> None:
        self._rules = rules
        self._ledger = ledger
        self._writer = writer
        self._provisional = provisional
        self._max_life_ms = max_life_ms
        self._now = now
        self._counts: dict[str, asyncio.Task[None]] = {}
        self._counted: dict[str, Covered] = {}

    async def kill(
        self, caller: Caller, selector: Selector, *, reason: str, hold: bool | None = None
    ) -> dict[str, Any]:
        """Kill, with a hold where the target needs one. Returns the receipt as far as it is filled.

        When the ledger cannot be written the kill is provisional: in force in this broker and at its verifiers, with an
        answer that claims no more.
        """
        command = self._command(caller, selector, reason=reason, hold=hold)
        for _ in range(_TRY_AGAIN):
            try:
                async with asyncio.timeout(_COMMIT_WITHIN_S):
                    outcome = await self._writer.submit_priority(command)
            except (LedgerUnavailable, TimeoutError):
                return self._provisional.put(command, tuple(self._matches(command)))
            match outcome:
                case Killed():
                    await self._count_soon(outcome.id)
                    return self.receipt(caller, outcome.id)
                case KillRefused():
                    raise (Conflict if outcome.reason == NO_NEXT_KEY else NotFound)(outcome.sentence)
                case Stale():
                    await self._rules.catch_up()
                    command = self._command(caller, selector, reason=reason, hold=hold)
                case _:
                    raise Unavailable("The kill could not be committed. Try again.", internal=repr(outcome))
        raise Unavailable("The rules keep changing under this kill. Try again.")

    def blast_radius(self, caller: Caller, selector: Selector, *, hold: bool | None = None) -> dict[str, Any]:
        """What this kill would end now, without doing it."""
        command = self._command(caller, selector, reason="dry run", hold=hold)
        rules = self._rules.current
        with self._ledger.read() as r:
            found = command.covers(r)
            if isinstance(found, KillRefused):
                raise NotFound(found.sentence)
            matches, tasks = found
            held = Covered(tuple(views.live_counts(r, matches)))
            external = external_covered(r, matches)
            standing = views.holds(r)
            connected = [
                each
                for each in views.instances(r, since=self._now() - 60_000)
                if each.last_contact + each.bound_ms >= self._now()
            ]
        agents = tuple(rules.registry.agents) if selector.target is Target.ALL else command.agents
        return {
            "dry_run": True,
            "target": selector.target.value,
            "value": selector.value,
            "would_end": {**held.to_json(), "tasks": len(tasks), "external": external.total},
            "would_hold": command.hold,
            "holds_standing": [
                row.id for row in standing if (row.target, row.value) == (selector.target, selector.value)
            ],
            "agents": {agent: _reach(rules, agent) for agent in agents},
            "verifiers_connected": len(connected),
        }

    async def revoke_own(self, caller: AgentCaller, selector: Selector) -> None:
        """An agent ends one of its own credentials (RFC 7009). Raises NotFound for any other's."""
        command = Kill(
            selector=selector,
            reason="revoked by its holder",
            actor=caller.id,
            hold=False,
            registry_hash=self._rules.current.registry_hash,
            own_grants_of=caller.id,
        )
        for _ in range(_TRY_AGAIN):
            outcome = await self._writer.submit(command)
            if isinstance(outcome, Killed):
                return
            if isinstance(outcome, KillRefused):
                raise NotFound(outcome.sentence)
            rules = await self._rules.catch_up()
            command = replace(command, registry_hash=rules.registry_hash)
        raise Unavailable("The rules keep changing. Try again.")

    async def resume(self, caller: Caller, agent_id: str, *, reason: str) -> dict[str, Any]:
        """Lift every hold on the agent. Nothing revives: it asks anew. Raises NotFound, Conflict when not paused."""
        selector = Selector(Target.AGENT, agent_id)
        operator = need(caller, Right.RESUME, owners=self._owners(selector))
        agent = self._rules.current.registry.agents.get(agent_id)
        if agent is None:
            raise NotFound(f"There is no agent {agent_id[:80]}.")
        lifted = await self._writer.submit_priority(
            LiftHolds(actor=operator.id, reason=checked_reason(reason), selector=selector)
        )
        if not lifted:
            raise Conflict(f"Agent {agent_id} is not paused.")
        return {"agent": agent_id, "lifted": lifted, "still_held_by": self._other_holds(agent_id, agent.owner)}

    async def lift(self, caller: Caller, hold_id: str, *, reason: str) -> dict[str, Any]:
        """Lift one hold. Raises NotFound."""
        with self._ledger.read() as r:
            row = views.hold(r, hold_id)
        placed_on = Selector(Target(row.target), row.value) if row else Selector(Target.ALL)
        operator = need(caller, Right.RESUME, owners=self._owners(placed_on))
        if row is None:
            raise NotFound(f"There is no hold {hold_id[:80]}.")
        lifted = await self._writer.submit_priority(
            LiftHolds(actor=operator.id, reason=checked_reason(reason), hold=hold_id)
        )
        if not lifted:
            raise Conflict(f"Hold {hold_id} was lifted before.")
        return {"lifted": lifted}

    def holds(self, caller: Caller) -> list[dict[str, Any]]:
        """Standing holds."""
        need_read(caller)
        with self._ledger.read() as r:
            return [
                {
                    "id": row.id,
                    "target": row.target,
                    "value": row.value,
                    "placed": row.placed,
                    "position": row.placed_seq,
                    "actor": row.actor,
                    "reason": row.reason,
                }
                for row in views.holds(r)
            ]

    def kills(self, caller: Caller, *, limit: int) -> list[dict[str, Any]]:
        """Kills, newest first, in brief."""
        need_read(caller)
        with self._ledger.read() as r:
            return [
                {
                    "id": row.id,
                    "position": row.seq,
                    "at": row.at,
                    "target": row.target,
                    "value": row.value,
                    "actor": row.actor,
                    "reason": row.reason,
                }
                for row in views.kills(r, limit=limit)
            ]

    def receipt(self, caller: Caller, kill_id: str) -> dict[str, Any]:
        """The receipt of one kill, from the ledger. Raises NotFound."""
        if not isinstance(caller, OperatorCaller):
            raise NotFound(f"There is no kill {kill_id[:80]}.")
        waiting = self._provisional.answer(kill_id)
        if waiting is not None:
            return waiting
        with self._ledger.read() as r:
            row = views.kill(r, self._provisional.became(kill_id) or kill_id)
            if row is None:
                raise NotFound(f"There is no kill {kill_id[:80]}.")
            matches = views.kill_matches(r, row.seq)
            hold = views.hold(r, row.hold) if row.hold else None
            standing = {each.id for each in views.holds(r)}
            return kill_receipt(
                row,
                matches=matches,
                ended=self._counted.get(row.id),
                expected=views.expected(r, row.seq),
                external=external_covered(r, matches, at_kill=row),
                max_life_ms=self._max_life_ms,
                now=max(r.head().time, self._now()),
                resumed=hold is not None and hold.id not in standing,
            )

    async def counted(self, kill_id: str) -> None:
        """Wait until what a kill ended is counted, so that its receipt can be complete."""
        await asyncio.shield(self._counting(self._provisional.became(kill_id) or kill_id))

    async def _count_soon(self, kill_id: str) -> None:
        """Count what a kill ended if that takes a moment, and wait for no more than that. Among a million live tokens
        it takes a tenth of a second of a core, which others need now: then whoever asks for the receipt begins it.
        """
        head = self._ledger.head
        if head.size - head.floor <= _COUNTED_AT_ONCE:
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._counting(kill_id)), _COUNT_WITHIN_S)

    def _counting(self, kill_id: str) -> "asyncio.Task[None]":
        """The count of what a kill ended, begun once: it is of one position and never changes."""
        task = self._counts.get(kill_id)
        if task is None:
            task = self._counts[kill_id] = asyncio.create_task(asyncio.to_thread(self._count, kill_id))
            if len(self._counts) > _REMEMBERED:
                oldest = next(iter(self._counts))
                del self._counts[oldest]
                self._counted.pop(oldest, None)
        return task

    def _count(self, kill_id: str) -> None:
        try:
            with self._ledger.read() as r:
                row = views.kill(r, kill_id)
                if row is not None:
                    matches = views.kill_matches(r, row.seq)
                    self._counted[kill_id] = Covered(tuple(views.live_counts(r, matches, at_kill=row)))
        except LedgerUnavailable:  # the kill is done all the same; whoever asks next begins the count anew
            self._counts.pop(kill_id, None)

    # --- How a selector becomes a command -----------------------------------------------------------------------------

    def _command(self, caller: Caller, selector: Selector, *, reason: str, hold: bool | None) -> Kill:
        rules = self._rules.current
        operator = need(caller, Right.KILL, owners=self._owners(selector))  # first: what exists is not for everyone
        agents, audience = self._expand(rules, selector)
        return Kill(
            selector=selector,
            reason=checked_reason(reason),
            actor=operator.id,
            hold=selector.target.holds if hold is None else hold and selector.target.holds,
            registry_hash=rules.registry_hash,
            agents=agents,
            audience=audience,
            alarm=operator.operator.break_glass,
            traceparent=tracing.current(),
        )

    def _expand(self, rules: Rules, selector: Selector) -> tuple[tuple[str, ...], str | None]:
        """The agents and the audience that the selector has in the registry: none where it is registered no more."""
        registry, value = rules.registry, selector.value
        match selector.target:
            case Target.AGENT:
                return ((value,) if value in registry.agents else ()), None
            case Target.OWNER:
                agents = registry.agents_of(value)
                if not agents and value not in registry.owners:
                    raise NotFound(f"There is no owner {value[:80]}.")
                return tuple(agents), None
            case Target.RESOURCE:
                return (), registry.resources[value].audience if value in registry.resources else None
            case _:
                return (), None

    def _owners(self, selector: Selector) -> frozenset[str] | None:
        """The owners whose agents this touches; None for what concerns everyone."""
        registry = self._rules.current.registry
        agent_id: str | None = None
        match selector.target:
            case Target.AGENT:
                agent_id = selector.value
            case Target.OWNER:
                return frozenset({selector.value})
            case Target.TASK | Target.GRANT:
                with self._ledger.read() as r:
                    agent_id = agent_of(r, selector)
            case _:
                return None
        agent = registry.agents.get(agent_id or "")
        return frozenset({agent.owner}) if agent else None

    def _matches(self, command: Kill) -> Sequence[tuple[Match, str]]:
        """What a provisional kill compares with tokens: the same, or as much of it as is known without the ledger."""
        with suppress(LedgerUnavailable), self._ledger.read() as r:
            found = command.covers(r)
            if isinstance(found, KillRefused):
                raise NotFound(found.sentence)
            return found[0]
        target, value = command.selector.target, command.selector.value
        if target is Target.OWNER:
            return [(Match.AGENT, agent) for agent in command.agents]
        if target is Target.RESOURCE:
            return [(Match.RESOURCE, command.audience)] if command.audience is not None else []
        return [(MATCH_OF[target], value)]

    def _other_holds(self, agent: str, owner: str) -> list[str]:
        with self._ledger.read() as r:
            return [
                row.id
                for row in views.holds(r)
                if (row.target, row.value) in {("all", ""), ("owner", owner), ("agent", agent)}
            ]


def agent_of(r: Reader, selector: Selector) -> str | None:
    """The agent of a task or grant."""
    if selector.target is Target.TASK:
        task = views.task(r, selector.value)
        if task is not None:
            return task.agent
    grant = views.grant_by_id(r, selector.value) or external_grant_by_id(r, selector.value)
    return grant.agent if grant else None


def need_read(caller: Caller) -> None:
    """Standing holds and kills are for operators of any scope: who is stopped is no secret among them."""
    if not isinstance(caller, OperatorCaller):
        raise NotFound("There is nothing here for you.")


def _reach(rules: Rules, agent_id: str) -> dict[str, Any]:
    """What the agent could obtain: its reviewed boundary and the data classes behind it."""
    registry = rules.registry
    boundary = registry.agents[agent_id].boundary
    resources = [registry.resources[name] for name in sorted(boundary) if name in registry.resources]
    return {
        "actions": sorted(action for actions in boundary.values() for action in actions),
        "data_classes": sorted({name for resource in resources for name in resource.data_classes}),
        "leaves_boundary": any(resource.leaves_boundary for resource in resources),
    }
