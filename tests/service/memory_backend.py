"""A backend in memory, with an issuer for it: what it has is looked at from its own side, and it fails as it is told.

A failure is put before or after the effect: "failed", and "failed but happened".
"""

import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from broker.issuing import Opened
from issuers import Ending, Found, Handle, Intent, IssuerError, Minted, Order, Standing, Wish
from tests.kit import Broker, Clock, Home

CANARY = "sW0rdf+sh/pa=ss w%rd"  # its url, base64 and hex forms all differ


@dataclass
class Backend:
    """What exists: sessions of tasks, and logins. `log` is everything that was asked of it, in order."""

    sessions: dict[str, str] = field(default_factory=dict)  # name -> task
    logins: dict[str, str] = field(default_factory=dict)  # name -> password
    until: dict[str, int] = field(default_factory=dict)  # name -> when it ends, in seconds
    log: list[tuple[str, str]] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def works(self, name: str) -> bool:
        """Whether one can log in."""
        return name in self.logins


class MemoryIssuer:
    """A `SecretIssuer`. `fail[step]` is a list of what befalls the next calls of that step."""

    kind = "memory"
    min_ttl_s = 5
    max_ttl_s = 3_600

    def __init__(
        self, backend: Backend | None = None, *, ending: Ending = Ending.REVOCABLE, prefix: str = "tp"
    ) -> None:
        self.backend = backend or Backend()
        self.ending = ending
        self.prefix = prefix
        self.last_s = 1 << 40  # what is renewed ends then at the latest
        self.fail: defaultdict[str, list[Callable[[Callable[[], Any]], Any]]] = defaultdict(list)
        self.before: dict[str, Callable[[], None]] = {}  # step -> what happens first
        self.calls: Counter[str] = Counter()
        self.threads = 0
        self.most_threads = 0

    def prepare(self, order: Order) -> Handle:
        name = f"{self.prefix}_{order.jti.removeprefix('grt_')}"

        def effect() -> Handle:
            self.backend.sessions[f"s_{name}"] = order.task
            return {"login": name, "session": f"s_{name}"}

        return self._do("prepare", name, effect)

    def issue(self, order: Order, prepared: Handle) -> Minted:
        name = prepared["login"]

        def effect() -> Minted:
            self.backend.logins[name] = f"{CANARY}{order.seq}"
            self.backend.until[name] = order.exp
            values = {"username": name, "password": self.backend.logins[name]}
            return Minted(values, {**prepared, "made": "1"}, order.exp)

        return self._do("issue", name, effect)

    def renews(self, handle: Handle) -> bool:
        return self.ending is Ending.REVOCABLE

    def renew(self, handle: Handle, exp: int) -> int:
        name = handle["login"]

        def effect() -> int:
            if not self.backend.works(name):
                raise IssuerError("The login has ended.", happened=False)
            self.backend.until[name] = min(exp, self.last_s)
            return self.backend.until[name]

        return int(self._do("renew", name, effect))

    def revoke(self, handle: Handle) -> None:
        self._do("revoke", handle["login"], lambda: self.backend.logins.pop(handle["login"], None))

    def status(self, handle: Handle) -> Found:
        def effect() -> Found:
            return Found(Standing.LIVE if self.backend.works(handle["login"]) else Standing.GONE)

        return self._do("status", handle["login"], effect)

    def close(self, handle: Handle) -> None:
        session = handle.get("session", "")
        self._do("close", session, lambda: self.backend.sessions.pop(session, None))

    def orphans(self) -> Iterator[Handle]:
        with self.backend.lock:
            names = list(self.backend.logins)
        yield from ({"login": name} for name in names if name.startswith(self.prefix))

    def _do(self, step: str, name: str, effect: Callable[[], Any]) -> Any:
        def happen() -> Any:
            with self.backend.lock:
                self.backend.log.append((step, name))
                return effect()

        with self.backend.lock:
            self.calls[step] += 1
            failure = self.fail[step].pop(0) if self.fail[step] else None
            self.threads += 1
            self.most_threads = max(self.most_threads, self.threads)
        try:
            if step in self.before:
                self.before[step]()
            return happen() if failure is None else failure(happen)
        finally:
            with self.backend.lock:
                self.threads -= 1


class ForeseeingIssuer(MemoryIssuer):
    """One whose logins are named by their grants, and need no session."""

    def foreseen(self, order: Order) -> Handle:
        return {"login": f"{self.prefix}_{order.jti.removeprefix('grt_')}"}


class AheadIssuer(ForeseeingIssuer):
    """One whose backend has transactions: what is begun has no effect before it is confirmed."""

    def issue_when(self, wish: Wish, intent: Callable[[], Intent | None]) -> Minted | None:
        self._do("begin", " ".join(wish.actions), lambda: None)
        committed = intent()
        if committed is None:
            self._do("undo", "", lambda: None)
            return None
        return self.issue(*committed)


def failed(_: Callable[[], Any]) -> Any:
    """The backend certainly did nothing."""
    raise IssuerError("The backend refused.", happened=False)


def lost(_: Callable[[], Any]) -> Any:
    """Nothing happened, but nobody can know."""
    raise IssuerError("The backend did not answer.")


def happened(effect: Callable[[], Any]) -> Any:
    """It happened, and the answer was lost."""
    effect()
    raise IssuerError("The answer was cut off.")


def bug(_: Callable[[], Any]) -> Any:
    """An exception that repeats what the backend said."""
    raise RuntimeError(f"unexpected answer: {CANARY}")


def until(event: threading.Event) -> Callable[[], None]:
    """For `MemoryIssuer.before`: the step begins when the event is set."""

    def wait() -> None:
        assert event.wait(10)

    return wait


def opened(issuer: Any, settings_of: Callable[[Mapping[str, Any]], Any] = dict) -> Opened:
    """As the broker takes it."""
    return Opened(issuer, settings_of)


RESOURCE = """
  orders-db:
    system: Orders database
    audience: https://orders-db.example.com
    owner: data-team
    data_classes: [personal]
    fields: [order]
    leaves_boundary: false
    retention: 1 year
    issuer: memory
    settings: {template: reader}
    actions:
      orders:read:
        access: read
        description: Read orders.
      orders:fix:
        access: write
        description: Correct one order.
        parameters:
          order: {type: string, required: true}
      orders:drop:
        access: write
        description: Drop everything.
"""

PERMITS = """
@id("data-bot-reads-orders")
permit (principal == Agent::"data-bot", action in [Action::"orders:read", Action::"orders:fix"], resource);
"""

GATES = """
@id("fixes-need-a-person")
@approvers("data-oncall")
forbid (principal, action == Action::"orders:fix", resource) when { context.parameters.order == "all" };
"""


def register(home: Any) -> None:
    """Give `data-bot` the database `orders-db` of the memory issuer."""
    home.append("registry/resources.yaml", RESOURCE)
    home.replace(
        "registry/agents.yaml",
        'archive: ["archive:read", "archive:list", "archive:export"]',
        'archive: ["archive:read", "archive:list", "archive:export"]\n      orders-db: ["orders:read", "orders:fix"]',
    )
    home.append("policies/permits/data.cedar", PERMITS)
    home.append("policies/gates/data.cedar", GATES)


class Site:
    """A broker with one backend."""

    def __init__(self, path: Path, issuer: MemoryIssuer | None = None) -> None:
        self.home = Home(path)
        register(self.home)
        self.issuer = issuer or MemoryIssuer()
        self.start()

    def start(self) -> None:
        self.broker = Broker(self.home, issuers={"memory": opened(self.issuer)})

    @property
    def backend(self) -> Backend:
        return self.issuer.backend

    @property
    def clock(self) -> Clock:
        return self.home.clock

    def ask(self, **changes: Any) -> Any:
        """Ask with an assertion of one's own, which the route spends."""
        body = {"resource": "orders-db", "actions": ["orders:read"], **changes}
        bearer = self.home.proof(body.pop("agent", "data-bot"))
        return self.broker.request("POST", "/v1/credentials", json=body, bearer=bearer)

    def granted(self, **changes: Any) -> dict[str, Any]:
        answer = self.ask(**changes)
        assert answer.status_code == 201, answer.text
        return dict(answer.json())

    def renew(self, grant: str, *, agent: str = "data-bot", **body: Any) -> Any:
        """Ask with an assertion of one's own, which the route spends."""
        bearer = self.home.proof(agent)
        return self.broker.request("POST", f"/v1/credentials/{grant}/renew", json=body, bearer=bearer)

    def state(self, grant: str) -> str:
        answer = self.broker.request("GET", f"/v1/credentials/{grant}", bearer=self.home.operator())
        assert answer.status_code == 200, answer.text
        return str(answer.json()["state"])

    def settle(self) -> None:
        self.broker.run(self.broker.process.reconciler.settle())

    def types(self, jti: str) -> list[str]:
        return [event["type"] for event in self.broker.events() if event.get("jti") == jti]

    def last(self) -> tuple[str, str]:
        """(state, jti) of the newest external grant."""
        [(seq, state)] = self.broker.query("SELECT seq, state FROM external_grants ORDER BY seq DESC LIMIT 1")
        return state, f"grt_{self.broker.process.ledger.head.epoch}_{seq}"

    def receipt(self, kill: str) -> Any:
        return self.broker.request("GET", f"/v1/kills/{kill}", bearer=self.home.operator()).json()

    def killed(self, target: str, value: str = "", **body: Any) -> dict[str, Any]:
        """What the receipt of a kill says of backends, once everything has been tried."""
        body = {"target": target, "value": value, "reason": "test", **body}
        answer = self.broker.request("POST", "/v1/kills", json=body, bearer=self.home.operator())
        assert answer.status_code < 300, answer.text
        self.settle()
        return dict(self.receipt(answer.json()["id"])["external"])
