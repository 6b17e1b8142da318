"""What the groups about secrets share: asking a broker for a credential, in turns with the bare backend."""

import http.client
import json
import os
from collections.abc import Callable
from statistics import median, quantiles
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

from bench.assertions import assertion
from bench.figures import FIGURES
from bench.run import Run
from bench.site import SCOPE, Site, agent_name


def overhead(run: Run, figure: str, **calls: Callable[[], object]) -> None:
    """Enter how much longer a credential takes than the bare call, in percent, at the median and the 99th percentile;
    the target is for both. The first of the calls is the bare one, the second ours; all take turns. What comes third
    has to put up with what the broker still does after its answer.
    """
    times = _in_turns(run, list(calls.values()))
    bare, ours = times[:2]
    p50, p99 = (_above(percentile, ours, bare) for percentile in (50, 99))
    medians = ", ".join(f"{name.replace('_', ' ')} {median(each):.1f}" for name, each in zip(calls, times, strict=True))
    run.book.figure(figure, p50, also=lambda: FIGURES[figure].meets(p99), note=f"p99 {p99:.0f} %; p50 in ms: {medians}")
    run.book.detail(figure, dict(zip(calls, times, strict=True)))


def _in_turns(run: Run, calls: list[Callable[[], object]]) -> list[list[float]]:
    """Milliseconds of each call, one of each in every round. The first rounds warm everything up."""
    warm, rounds = 20, run.times(300, 60)
    times: list[list[float]] = [[] for _ in calls]
    for number in range(warm + rounds):
        for call, found in zip(calls, times, strict=True):
            start = perf_counter()
            call()
            if number >= warm:
                found.append((perf_counter() - start) * 1000)
    return times


def _above(percentile: int, ours: list[float], theirs: list[float]) -> float:
    """How many percent one percentile of ours lies above theirs."""
    mine, bare = (quantiles(times, n=100)[percentile - 1] for times in (ours, theirs))
    return (mine / bare - 1) * 100


def yardstick(site: Site, bare: Callable[[], object], *, fsyncs: int) -> Callable[[], object]:
    """A yardstick: the bare call, one request to the broker that is answered at once, and so many durable writes of a
    page, one after the other, in the directory of its ledger.
    """
    where = urlsplit(site.issuer)
    connection = http.client.HTTPConnection(str(where.hostname), where.port)
    file = os.open(site.ledger.parent / "beside", os.O_WRONLY | os.O_CREAT, 0o600)

    def call() -> None:
        connection.request("GET", "/livez")
        connection.getresponse().read()
        for _ in range(fsyncs):
            os.write(file, bytes(4096))
            os.fdatasync(file)
        bare()

    return call


def asking(
    site: Site, resource: str = "records", action: str = SCOPE, *, in_one_task: bool = False
) -> Callable[[], dict[str, Any]]:
    """A request for one credential, in a session that was opened before; each its own task, or all in one."""
    where = urlsplit(site.issuer)
    connection = http.client.HTTPConnection(str(where.hostname), where.port)

    def post(path: str, bearer: str, body: dict[str, Any]) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {bearer}", "Content-Type": "application/json"}
        connection.request("POST", path, json.dumps(body), headers)
        response = connection.getresponse()
        answer: dict[str, Any] = json.loads(response.read())
        if response.status != 201:
            raise RuntimeError(f"{path} answered {response.status}: {answer}")
        return answer

    session = post("/v1/sessions", assertion(agent_name(0), site.issuer), {})["session_token"]
    task = {"task": post("/v1/tasks", session, {"purpose": "bench"})["id"]} if in_one_task else {}
    return lambda: post("/v1/credentials", session, {"resource": resource, "actions": [action], **task})
