"""Killing an agent with 1,000 live Vault leases, 200 PostgreSQL roles and a token: when each of them is gone.

Beside nothing, but Vault and its PostgreSQL share the machine. On: everything. Timed from the operator's request: to
the answer, from which on issuance is stopped; to the last of four connected verifiers refusing the token; to each
backend having nothing left by its own account (leases and the logins that they made; roles); and to the receipt saying
that everything is confirmed. Meanwhile every process of the broker watches its own event loop. The figure leaves out
what a loop waited for a core, of which two are too few for all that runs here: the note has it.
"""

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from bench import loops
from bench.client import Operator, Tokens
from bench.machine import all_cores
from bench.run import Run
from bench.secret_backends import Backend, change, missing, postgres, vault
from bench.secret_calls import asking
from bench.serving import serving
from bench.site import Site, agent_name
from bench.verifiers import Fleet, verifiers

FIGURE = "secret_loop_block_ms"
_DEAD_WITHIN_MS = 1_000  # of the kill, at the last verifier: the bound of the spine
_GONE_WITHIN_S = 600
_TASKS = 8


def measure(run: Run) -> None:
    """`secret_loop_block_ms`."""
    if why := missing(vault=True):
        run.book.skipped([FIGURE], why)
        return
    watched = Path(mkdtemp(dir=run.scratch))
    site = run.site(ttl_s=600)
    with ExitStack() as stack:
        _, leases = stack.enter_context(vault(run.scratch, ttl="1h"))
        _, roles = stack.enter_context(postgres())
        backends = {"leases": leases, "roles": roles}
        for name, backend in backends.items():
            _add(site, name)
            backend.serves(site, name)
        environment = {loops.VARIABLE: str(watched)}
        stack.enter_context(serving(site, core=all_cores(), environment=environment))
        fleet = stack.enter_context(verifiers(site, number=4, cores=all_cores()))
        made = {"leases": run.times(1_000, 100), "roles": run.times(200, 20)}
        for name, number in made.items():
            _make(site, name, number)
        started = time.time_ns()
        took = _killed(site, fleet, backends)
        blocks = loops.blocks(watched, since_ns=started)
    block = max(blocks, key=lambda each: each.ms)
    starved_ms = max(each.no_core_ms for each in blocks)
    confirmed = took.pop("confirmed")
    gone = ", ".join(f"{name} {took[name] / 1000:.1f} s" for name in (*backends, "receipt"))
    run.book.figure(
        FIGURE,
        block.ms,
        also=lambda: took["refused"] < _DEAD_WITHIN_MS and confirmed == sum(made.values()),
        note=f"{block.cpu_ms:.0f} ms of it CPU time; longest wait for a core {starved_ms:.0f} ms; "
        f"{made['leases']} leases and {made['roles']} roles: answered after {took['answered']:.0f} ms, "
        f"token refused after {took['refused']:.0f} ms, gone after: {gone}",
    )
    run.book.detail("secret kill", {"made": made, "ms": took, "blocks": [each._asdict() for each in blocks]})


def _add(site: Site, name: str) -> None:
    """A resource that every agent may have secrets of."""
    action = f"{name}:read"
    change(
        site,
        "resources",
        lambda rows: rows.update(
            {
                name: rows["records"]
                | {
                    "audience": f"https://{name}.example.com",
                    "actions": {action: {"access": "read", "description": "Read."}},
                }
            }
        ),
    )
    change(site, "agents", lambda rows: [row["boundary"].update({name: [action]}) for row in rows.values()])
    permit = f'@id("reads-{name}") permit (principal, action == Action::"{action}", resource);\n'
    (site.directory / "policies" / "permits" / f"{name}.cedar").write_text(permit, encoding="utf-8")


def _make(site: Site, name: str, number: int) -> None:
    """So many live ones, in several tasks at once."""
    with ThreadPoolExecutor(_TASKS) as threads:
        asks = [asking(site, name, f"{name}:read", in_one_task=True) for _ in range(_TASKS)]
        shares = [number // _TASKS + (n < number % _TASKS) for n in range(_TASKS)]
        list(threads.map(lambda ask, share: [ask() for _ in range(share)], asks, shares))


def _killed(site: Site, fleet: Fleet, backends: Mapping[str, Backend]) -> dict[str, float]:
    """Milliseconds from the request to what came of it, and how many endings the receipt has `confirmed`."""
    operator = Operator(site)
    operator.call("GET", "/v1/whoami")
    fleet.watch(Tokens(site).get(agent_name(0)))
    began = time.time_ns()

    def since() -> float:
        return (time.time_ns() - began) / 1e6

    kill = operator.pause(agent_name(0))
    took = {"answered": since(), "refused": (max(fleet.refusals()) - began) / 1e6}
    left = dict(backends)
    receipt: dict[str, Any] = {}
    while left or "receipt" not in took:
        if since() > _GONE_WITHIN_S * 1000:
            raise TimeoutError(f"after {_GONE_WITHIN_S} s: {receipt}")
        for name in [name for name, backend in left.items() if backend.count() == 0]:
            took[name] = since()
            del left[name]
        receipt = operator.receipt(kill["id"], wait_ms=0)["external"]
        if "receipt" not in took and not receipt["pending"] and not receipt["stuck"]:
            took["receipt"] = since()
        time.sleep(0.1)
    return {**took, "confirmed": receipt["confirmed"]}
