"""What the groups about secrets share: asking a broker for a credential, in turns with the bare backend."""

import json
import os
import socket
from collections.abc import Callable, Mapping
from http.client import HTTPResponse
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
    first = median(bare)
    medians = ", ".join(
        f"{name.replace('_', ' ')} {median(each):.1f} ({(median(each) / first - 1) * 100:+.0f} %)"
        for name, each in zip(calls, times, strict=True)
    )
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


class Client:
    """Asks a server over one kept connection, at the least cost: everything that is timed over HTTP is asked by it, the
    bare backend, ours and the yardsticks alike. A request leaves in one piece, so that nobody waits for its body.
    """

    def __init__(self, url: str) -> None:
        where = urlsplit(url)
        self._host = where.netloc
        self._socket = socket.create_connection((where.hostname, where.port), timeout=30)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None, body: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """The JSON of the answer. Raises RuntimeError."""
        content = b"" if body is None else json.dumps(body).encode()
        named = {"Host": self._host, "Content-Length": str(len(content)), **(headers or {})}
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in named.items()), "", ""]
        self._socket.sendall("\r\n".join(lines).encode() + content)
        response = HTTPResponse(self._socket, method=method)
        response.begin()
        found = response.read()
        response.close()
        if response.status >= 300:
            raise RuntimeError(f"{path} answered {response.status}: {found[:300].decode(errors='replace')}")
        answer: dict[str, Any] = json.loads(found)
        return answer


def yardstick(site: Site, bare: Callable[[], object], *, fsyncs: int) -> Callable[[], object]:
    """A yardstick: the bare call, one request to the broker that is answered at once, and so many durable writes of a
    page, one after the other, in the directory of its ledger.
    """
    client = Client(site.issuer)
    file = os.open(site.ledger.parent / "beside", os.O_WRONLY | os.O_CREAT, 0o600)

    def call() -> None:
        client.ask("GET", "/livez")
        for _ in range(fsyncs):
            os.write(file, bytes(4096))
            os.fdatasync(file)
        bare()

    return call


def asking(
    site: Site, resource: str = "records", action: str = SCOPE, *, in_one_task: bool = False
) -> Callable[[], dict[str, Any]]:
    """A request for one credential, in a session that was opened before; each its own task, or all in one."""
    client = Client(site.issuer)

    def post(path: str, bearer: str, body: Mapping[str, Any]) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {bearer}", "Content-Type": "application/json"}
        return client.ask("POST", path, headers=headers, body=body)

    session = post("/v1/sessions", assertion(agent_name(0), site.issuer), {})["session_token"]
    task = {"task": post("/v1/tasks", session, {"purpose": "bench"})["id"]} if in_one_task else {}
    return lambda: post("/v1/credentials", session, {"resource": resource, "actions": [action], **task})
