"""Where a token's time goes: the CPU cost of each step of the pipeline, in microseconds for one token.

Runs beside nothing: the broker's own objects, assembled as in production (identity, replay marks, ten policies, durable
ledger, signing), in this process and without HTTP, in batches as large as the connections of a burst. The steps are
timed on their own thread's CPU clock, so waiting for the disk or for the other thread is not counted. Timers are put
around the steps from outside; they cost about half a microsecond each and are in the figures.
"""

import asyncio
import gc
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlencode

import cedarpy
import uvloop

from bench.assertions import JWT_BEARER, assertion
from bench.machine import Calibration, calibrate, on_core
from bench.run import Run
from bench.site import AUDIENCE, SCOPE, Site, agent_name
from broker.app import Role, running
from broker.ledger.transaction import Transaction
from broker.service.asks import read_token_request
from broker.web.http import parse_form
from broker.web.token import granted

BATCH = 64


class Clock:
    """Adds up the CPU time of calls, by name."""

    def __init__(self) -> None:
        self.spent: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, counted under `name`."""

        def counted(*args: Any, **named: Any) -> Any:
            start = time.thread_time_ns()
            try:
                return call(*args, **named)
            finally:
                self.spent[name] += time.thread_time_ns() - start
                self.calls[name] += 1

        return counted

    @contextmanager
    def around(self, name: str) -> Iterator[None]:
        """A block, counted under `name`."""
        start = time.thread_time_ns()
        yield
        self.spent[name] += time.thread_time_ns() - start


def measure(run: Run) -> None:
    """The detail `steps`; no figure has a target here."""
    site = run.site()
    before = calibrate(run.server_core)
    with on_core(run.server_core):
        spent = uvloop.run(_run(site, run.times(12_800, 3_200)))
    calibration = Calibration.between(before, calibrate(run.server_core))
    spent["of which the library: ES256 verify"] = calibration.verify_us
    spent["of which the library: ES256 sign"] = calibration.sign_us
    for name, us in sorted(spent.items()):
        print(f"  {us:8.1f} us  {name}")
    run.book.detail("steps", spent)


async def _run(site: Site, tokens: int) -> dict[str, float]:
    clock = Clock()
    async with running(site.config, role=Role.ALL) as process:
        issuance = process.broker.issuance
        await _tokens(site, issuance, 5 * BATCH, Clock())
        _instrument(clock, issuance, process)
        gc.collect()
        start, cpu = time.process_time_ns(), time.thread_time_ns()
        waited = await _tokens(site, issuance, tokens, clock)
        total = time.process_time_ns() - start - waited
        main = time.thread_time_ns() - cpu - waited
    spent = {name: ns / 1000 / tokens for name, ns in clock.spent.items()}
    spent["total: both threads"] = total / 1000 / tokens
    spent["total: the loop's thread"] = main / 1000 / tokens
    return spent


async def _tokens(site: Site, issuance: Any, tokens: int, clock: Clock) -> int:
    """Get so many tokens in batches; the CPU time spent on making assertions, which is nobody's cost here."""
    waited = 0
    for _ in range(tokens // BATCH):
        start = time.thread_time_ns()
        bodies = [_body(agent_name(n % site.agents), site.issuer) for n in range(BATCH)]
        waited += time.thread_time_ns() - start
        requests = []
        with clock.around("1 bound and parse the form"):
            for body in bodies:
                requests.append(read_token_request(parse_form("application/x-www-form-urlencoded", body)))
        answers = await asyncio.gather(*(issuance.issue(request) for request in requests))
        with clock.around("11 render the answer"):
            for answer in answers:
                granted(answer)
    return waited


def _body(name: str, issuer: str) -> bytes:
    return urlencode(
        {
            "grant_type": "client_credentials",
            "client_assertion_type": JWT_BEARER,
            "resource": AUDIENCE,
            "scope": SCOPE,
            "client_assertion": assertion(name, issuer),
        }
    ).encode()


def _instrument(clock: Clock, issuance: Any, process: Any) -> None:
    """Put timers around the steps, on the objects of this one process."""
    for owner, method, name in (
        (issuance, "_authenticate", "2 authenticate: the assertion"),
        (issuance, "_map", "3 map to an agent"),
        (issuance._steps, "load_task", "4 load the task"),  # noqa: SLF001
        (issuance._steps, "narrow", "5 narrow"),  # noqa: SLF001
        (issuance._steps, "decide", "6 decide"),  # noqa: SLF001
        (issuance, "_command", "8 commit: make the command"),
    ):
        setattr(owner, method, clock.timed(name, getattr(owner, method)))
    mint = issuance._issuer  # noqa: SLF001
    mint.claims = clock.timed("9 mint: the claims", mint.claims)
    for signer in process.keyring._signers.values():  # noqa: SLF001
        signer.sign = clock.timed("9 mint: sign", signer.sign)
    rules = process.broker.issuance._rules.current  # noqa: SLF001
    attester = rules.attesters
    attester.attest = clock.timed("2a attest (in 2)", attester.attest)
    rules.engine.decide_batch = clock.timed("6a decide_batch (in 6)", rules.engine.decide_batch)
    cedarpy.is_authorized_batch = clock.timed("6b cedar itself (in 6a)", cedarpy.is_authorized_batch)
    ledger = process.ledger
    ledger._transact = clock.timed("8 commit: the transaction, on the writer's thread", ledger._transact)  # noqa: SLF001
    ledger._finish = clock.timed("8c COMMIT, fsync included (in 8)", ledger._finish)  # noqa: SLF001
    Transaction.apply_all = clock.timed("8a guards, marks, grants, events (in 8)", Transaction.apply_all)  # type: ignore[method-assign]
    Transaction.store = clock.timed("8b event rows, tree and head (in 8)", Transaction.store)  # type: ignore[method-assign]
    writer = process.writer
    writer._deliver = clock.timed("8 commit: tell the waiting", writer._deliver)  # noqa: SLF001
