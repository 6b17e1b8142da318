"""Ledgers with a past: grants and events put in through the ledger's own commands, not over HTTP.

Everything about them is as after real requests (marks, grants, events, tree); only nobody was handed a token.
"""

import asyncio
import secrets
from collections.abc import Iterator, Sequence
from itertools import islice

from bench.site import AUDIENCE, SCOPE, Site
from broker.app import Role, running
from broker.ledger import Command
from broker.ledger.commands.issue import Asked, Issue, Issued, Verdict
from broker.ledger.sqlite import SqliteLedger
from broker.model import Ask, Proof, Workload
from broker.stores import wall_clock

_BATCH = 1_000


def load_rules(site: Site) -> None:
    """Put the site's registry and policies in force, as the first start of the broker does."""

    async def once() -> None:
        async with running(site.config, role=Role.CONTROL):
            pass

    asyncio.run(once())


def seed(site: Site, agents: Sequence[str], *, grants: int, ttl_ms: int = 300_000) -> None:
    """Issue so many grants to these agents in turn. Raises AssertionError when one is refused."""
    ledger = SqliteLedger.open(site.ledger, now=wall_clock)
    try:
        commands = _issues(ledger, agents, ttl_ms)
        for start in range(0, grants, _BATCH):
            outcomes = ledger.commit(list(islice(commands, min(_BATCH, grants - start))))
            assert all(isinstance(outcome, Issued) for outcome in outcomes), outcomes[0]
    finally:
        ledger.close()


def _issues(ledger: SqliteLedger, agents: Sequence[str], ttl_ms: int) -> Iterator[Command]:
    head = ledger.head
    verdict = Verdict("automatic", ("reads-records",), head.policy_hash, head.registry_hash)
    ask = Ask("records", (SCOPE,), {})
    while True:
        for agent in agents:
            proof = Proof(agent, secrets.token_hex(12), wall_clock() + 120_000)
            workload = Workload(
                trust=agent, kind="key", issuer=agent, subject=agent, claims={}, expires=proof.expires, proof=proof
            )
            asked = Asked(agent=agent, owner="finance-platform", workload=workload, task=None, ask=ask)
            yield Issue(asked, verdict, AUDIENCE, ttl_ms)
