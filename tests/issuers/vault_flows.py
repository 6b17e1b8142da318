"""What is done with Vault, start to end: recorded at a real server, and replayed where there is none."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests

from issuers import Handle, IssuerError, Minted, NotRenewable, Order, Standing
from issuers.vault import Login, VaultIssuer, connect
from tests.issuers import vault as kit
from tests.issuers.api_server import ApiServer, Asked, Reply
from tests.issuers.harness import new_order

RECORDINGS = Path(__file__).parent / "recordings"
BROKER = "broker-token"
_SECRET = {"client_token", "token", "password", "private_key", "secret_id"}
_NAMELESS = ("s.", "hvs.")  # how a token begins, wherever it stands


@dataclass
class Scene:
    """A broker with the clock of the recording."""

    now_ms: int
    issuer: VaultIssuer = field(init=False)
    kept: dict[str, Any] = field(default_factory=dict)

    def order(self, settings: Mapping[str, Any], number: int = 1, **changes: Any) -> Order:
        fixed = {"seq": number, "jti": f"grt_7f3a9c1e_{number}", "task": "tsk_7f3a9c1e_0", "settings": settings}
        return new_order(now_s=self.now_ms // 1000, ttl_s=120, **fixed | changes)

    def issue(self, order: Order) -> Minted:
        return self.issuer.issue(order, self.issuer.prepare(order))

    def standing(self, handle: Handle) -> Standing:
        return self.issuer.status(handle).standing


def login(scene: Scene) -> None:
    """A database login: leased, shortened to its grant, seen, ended, seen to be gone; then its session."""
    order = scene.order(kit.READONLY)
    minted = scene.issue(order)
    assert minted.values["username"].startswith("v-")
    assert minted.exp <= order.exp
    assert scene.standing(minted.handle) is Standing.LIVE
    scene.issuer.revoke(minted.handle)
    assert scene.standing(minted.handle) is Standing.GONE
    scene.issuer.close(minted.handle)
    assert scene.standing({"accessor": minted.handle["accessor"]}) is Standing.GONE
    scene.issuer.revoke(minted.handle)
    scene.issuer.close(minted.handle)


def shared(scene: Scene) -> None:
    """Two grants of one task: one session, and an end of one that leaves the other."""
    one, two = (scene.issue(scene.order(kit.READONLY, number)) for number in (1, 2))
    assert one.handle["accessor"] == two.handle["accessor"]
    scene.issuer.revoke(one.handle)
    assert (scene.standing(one.handle), scene.standing(two.handle)) == (Standing.GONE, Standing.LIVE)
    scene.issuer.close(two.handle)
    scene.issuer.revoke(two.handle)
    assert scene.standing(two.handle) is Standing.GONE


def lost(scene: Scene) -> None:
    """A lease whose id nobody heard: found through its session, and only by that."""
    order = scene.order(kit.WRITER)
    prepared = scene.issuer.prepare(order)
    try:
        scene.issuer.issue(order, prepared)
    except IssuerError as error:
        scene.kept["error"] = error
    scene.issuer.revoke(prepared)
    assert scene.standing(prepared) is Standing.GONE


def wrapped(scene: Scene) -> None:
    """An answer that Vault wraps: nothing in it is the secret."""
    minted = scene.issue(scene.order(kit.WRAPPED))
    assert set(minted.values) == {"wrap_token", "wrap_address"}
    assert scene.standing(minted.handle) is Standing.LIVE
    scene.issuer.revoke(minted.handle)
    assert scene.standing(minted.handle) is Standing.GONE


def renewed(scene: Scene) -> None:
    """A lease that is renewed within its task."""
    order = scene.order(kit.READONLY)
    minted = scene.issue(scene.order(kit.READONLY, deadline=order.iat + 600))
    assert abs(scene.issuer.renew(minted.handle, order.iat + 300) - (order.iat + 300)) <= 2
    assert scene.issuer.renew(minted.handle, order.iat + 3000) <= order.iat + 602
    scene.issuer.close(minted.handle)
    scene.issuer.revoke(minted.handle)
    with pytest.raises(IssuerError):
        scene.issuer.renew(minted.handle, order.iat + 310)


def static(scene: Scene) -> None:
    """A key-value entry, which cannot be taken back."""
    minted = scene.issue(scene.order(kit.PASSWORD_V2))
    assert minted.values["user"] == "agent"
    assert scene.standing(minted.handle) is Standing.LIVE
    scene.issuer.close(minted.handle)


def certificate(scene: Scene) -> None:
    """A leased certificate of a PKI engine, by a write with parameters: made for one life."""
    order = scene.order(kit.CERTIFICATE)
    minted = scene.issue(order._replace(deadline=order.exp + 300))
    assert minted.values["certificate"].startswith("-----BEGIN CERTIFICATE-----")
    with pytest.raises(NotRenewable):
        scene.issuer.renew(minted.handle, order.exp + 60)
    scene.issuer.revoke(minted.handle)
    assert scene.standing(minted.handle) is Standing.GONE


def unknown_path(scene: Scene) -> None:
    """A path that does not exist: refused, with nothing done."""
    with pytest.raises(IssuerError) as refused:
        scene.issue(scene.order({"path": "database/creds/unknown", "policy": "taskpass-database-creds-readonly"}))
    assert refused.value.happened is False
    with pytest.raises(IssuerError) as refused:
        scene.issue(scene.order({**kit.READONLY, "policy": "taskpass-unknown"}, 2))
    assert refused.value.happened is False


def orphans(scene: Scene) -> None:
    """Sessions of ours that may belong to nobody: the ledger tells which."""
    minted = scene.issue(scene.order(kit.READONLY))
    assert [each["accessor"] for each in scene.issuer.orphans()] == [minted.handle["accessor"]]
    scene.issuer.close(minted.handle)
    scene.issuer.revoke(minted.handle)
    assert list(scene.issuer.orphans()) == []


FLOWS: Mapping[str, Callable[[Scene], None]] = {
    each.__name__: each for each in (orphans, login, shared, lost, wrapped, renewed, static, certificate, unknown_path)
}


def scene_at(
    address: str, place: Path, now_ms: int, *, token: str, timeout_s: float = 5, name: str = "recorded"
) -> Scene:
    """A broker that has just started."""
    file = place / "token"
    file.write_text(token)
    scene = Scene(now_ms)
    vault = connect(
        address=address, login=Login("token", file), now=lambda: scene.now_ms, name=name, timeout_s=timeout_s
    )
    scene.issuer = VaultIssuer(vault=vault)
    return scene


class Recorder(ApiServer):
    """Stands between a broker and a real server, and writes down what they say, without what is secret."""

    def __init__(self, *, target: str, broker: str) -> None:
        super().__init__()
        self._target = target
        self._names: dict[str, str] = {broker: BROKER}
        self.exchanges: list[dict[str, Any]] = []

    def act(self, asked: Asked) -> Reply:
        answer = requests.request(
            asked.method, self._target + asked.path, data=asked.body, timeout=30,
            headers={k: v for k, v in asked.headers.items() if k.startswith("x-vault") or k == "content-type"},
        )  # fmt: skip
        kept = {k: v for k, v in answer.headers.items() if k in {"Content-Type", "Retry-After"}}
        body = json.loads(answer.content) if answer.content else None
        self.exchanges.append(
            {
                "request": self._clean(_request(asked)),
                "answer": {"status": answer.status_code, "headers": kept, "body": self._clean(body)},
            }
        )
        return Reply(answer.status_code, answer.content, kept)

    def _clean(self, value: Any, name: str = "") -> Any:
        """The same, each secret replaced by the same placeholder wherever it stands."""
        if isinstance(value, dict):
            return {key: self._clean(each, key) for key, each in value.items()}
        if isinstance(value, list):
            return [self._clean(each) for each in value]
        if isinstance(value, str) and value and (name in _SECRET or value.startswith(_NAMELESS)):
            return self._names.setdefault(value, f"{name}-{len(self._names) + 1}")
        return value


class Replayer(ApiServer):
    """Answers as the recorded server did, to the same requests in the same order, and to no others."""

    def __init__(self, exchanges: list[dict[str, Any]]) -> None:
        super().__init__()
        self.left = list(exchanges)
        self.wrong: list[str] = []

    def act(self, asked: Asked) -> Reply:
        wanted = self.left[0]["request"] if self.left else None
        if wanted != _request(asked):
            self.wrong.append(f"asked {asked.method} {asked.path} {asked.body!r}; recorded is {wanted}")
            return Reply(599)
        answer = self.left.pop(0)["answer"]
        body = b"" if answer["body"] is None else json.dumps(answer["body"]).encode()
        return Reply(answer["status"], body, answer["headers"])


def _request(asked: Asked) -> dict[str, Any]:
    """What of a request must be the same: the token too, by its placeholder."""
    return {
        "method": asked.method,
        "path": asked.path,
        "token": asked.headers.get("x-vault-token"),
        "wrap": asked.headers.get("x-vault-wrap-ttl"),
        "body": json.loads(asked.body) if asked.body else None,
    }


def record(name: str, site: kit.Site, place: Path) -> dict[str, Any]:
    """Run one flow against a real server; the recording."""
    now_ms, token = kit.wall(), site.new_broker_token()
    with Recorder(target=site.bao.address, broker=token) as recorder:
        FLOWS[name](scene_at(recorder.url, place, now_ms, token=token))
        return {
            "server": f"OpenBao {site.bao.version}",
            "flow": name,
            "about": (FLOWS[name].__doc__ or "").strip(),
            "now_ms": now_ms,
            "exchanges": recorder.exchanges,
        }
