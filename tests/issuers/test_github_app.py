"""Installation tokens against a server that speaks GitHub's API, verifies the app's JWT, and can fail."""

import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from issuers import Ending, IssuerError, Minted, Order, Standing
from issuers.github_app import GitHubAppIssuer, settings_of
from tests.issuers.api_server import Fault, Reply
from tests.issuers.github_server import GitHubServer

KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
SETTINGS: dict[str, Any] = {
    "installation": 4242,
    "repositories": ["invoices", "credits"],
    "permissions": {"repo:read": {"contents": "read"}, "repo:write": {"contents": "write", "issues": "read"}},
    "repository_parameter": "repository",
}
START = 1_790_000_000


class Clock:
    def __init__(self) -> None:
        self.ms = START * 1000

    def __call__(self) -> int:
        return self.ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def github(clock: Clock) -> Iterator[GitHubServer]:
    with GitHubServer(key=KEY.public_key(), now=clock) as server:
        yield server


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "app.pem"
    path.write_bytes(KEY.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()))
    return path


@pytest.fixture
def issuer(github: GitHubServer, key_file: Path, clock: Clock) -> GitHubAppIssuer:
    return an_issuer(github, key_file, clock)


def an_issuer(github: GitHubServer, key_file: Path, clock: Clock, **changes: Any) -> GitHubAppIssuer:
    known = {"app": github.app, "private_key_file": key_file, "now": clock, "url": github.url, "timeout_s": 5.0}
    return GitHubAppIssuer(**{**known, **changes})


def order(*actions: str, limited: tuple[str, ...] = (), settings: Any = None, **parameters: Any) -> Order:
    return Order(
        seq=7, jti="grt_0000abcd_7", kid="k", agent="builder", task="tsk_0000abcd_6", audience="https://github.com/acme",
        actions=actions if actions or limited else ("repo:read",), limited=limited, parameters=parameters,
        iat=START, exp=START + 300, settings=SETTINGS if settings is None else settings,
    )  # fmt: skip


def mint(issuer: GitHubAppIssuer, wanted: Order) -> Minted:
    return issuer.issue(wanted, issuer.prepare(wanted))


def test_a_token_reaches_what_was_asked_and_no_more(github: GitHubServer, issuer: GitHubAppIssuer) -> None:
    minted = mint(issuer, order("repo:read", "repo:write"))
    made = github.tokens[minted.values["token"]]
    assert made["repositories"] == ["invoices", "credits"]
    assert made["permissions"] == {"contents": "write", "issues": "read"}
    assert minted.exp == START + 300  # the order's: until then it is ours to end
    assert minted.handle["expires"] == str(made["exp"]) == str(START + 3600)
    assert minted.values["username"] == "x-access-token"
    assert issuer.ending is Ending.REVOCABLE


def test_a_parameter_chooses_one_repository(github: GitHubServer, issuer: GitHubAppIssuer) -> None:
    minted = mint(issuer, order(limited=("repo:read",), repository="credits"))
    assert github.tokens[minted.values["token"]]["repositories"] == ["credits"]


@pytest.mark.parametrize(
    "wanted",
    [
        order(limited=("repo:read",), repository="payroll"),  # in the installation, but not this resource's
        order("repo:write", limited=("repo:read",), repository="credits"),  # a product would be wider than either
        order("repo:burn"),
        order(settings={}),
    ],
)
def test_what_cannot_be_granted_reaches_nobody(github: GitHubServer, issuer: GitHubAppIssuer, wanted: Order) -> None:
    with pytest.raises(IssuerError) as refused:
        issuer.prepare(wanted)
    assert refused.value.happened is False
    assert github.asked == []


def test_revoking_ends_it_at_github(github: GitHubServer, issuer: GitHubAppIssuer) -> None:
    minted = mint(issuer, order())
    assert issuer.status(minted.handle).standing is Standing.LIVE
    issuer.revoke(minted.handle)
    assert github.alive() == []
    assert issuer.status(minted.handle).standing is Standing.GONE
    issuer.revoke(minted.handle)  # again, with nothing to end
    issuer.close(minted.handle)
    assert list(issuer.orphans()) == []


def test_the_look_is_at_github_and_not_at_our_memory(github: GitHubServer, issuer: GitHubAppIssuer) -> None:
    minted = mint(issuer, order())
    github.tokens.clear()
    assert issuer.status(minted.handle).standing is Standing.GONE


def test_the_handle_holds_no_secret(issuer: GitHubAppIssuer) -> None:
    minted = mint(issuer, order())
    token = minted.values["token"]
    assert token not in json.dumps(dict(minted.handle))
    assert token not in repr(minted)
    assert token not in repr(vars(issuer))


def test_after_a_restart_it_says_that_it_cannot_and_until_when(
    github: GitHubServer, issuer: GitHubAppIssuer, key_file: Path, clock: Clock
) -> None:
    minted = mint(issuer, order())
    restarted = an_issuer(github, key_file, clock)
    restarted.revoke(minted.handle)
    found = restarted.status(minted.handle)
    assert found.standing is Standing.LIVE
    assert found.note is not None
    assert "ends by itself by 2026-09-21T15:13:20Z" in found.note
    assert "suspend the app's installation 4242" in found.note
    assert github.alive()  # it was true
    clock.ms += 3_700_000
    assert not github.alive()
    assert restarted.status(minted.handle).standing is Standing.GONE
    assert restarted.status(minted.handle).by_itself


def examined(issuer: GitHubAppIssuer, **changes: Any) -> list[str]:
    """What is not as it should be. Its server dates answers by the real clock."""
    found = list(issuer.examine({"repos": {**SETTINGS, **changes}, "wrong": {}}, time.time_ns() // 1_000_000))
    assert all(seen.advice for seen in found if seen.state != "ok")
    return [f"{seen.what}: {seen.sentence}" for seen in found if seen.state != "ok"]


def test_whether_the_app_is_ready_is_told_without_a_token(
    github: GitHubServer, issuer: GitHubAppIssuer, key_file: Path, clock: Clock
) -> None:
    assert examined(issuer) == []
    assert examined(issuer, permissions={"x": {"contents": "admin"}}) == [
        "installation: repos: it lacks contents: admin"
    ]
    assert "knows no such installation" in examined(issuer, installation=7)[0]
    github.suspended = True
    assert examined(issuer) == ["installation: repos: it is suspended"]
    assert "does not accept the app's key" in examined(an_issuer(github, key_file, clock, app="other"))[0]
    assert "app: repos: " in examined(an_issuer(github, key_file, clock, url="http://127.0.0.1:1"))[0]
    assert [seen.state for seen in issuer.examine({"repos": SETTINGS}, 0)][-1] == "wrong"  # the clock
    assert github.ever == []


def test_what_was_only_prepared_is_gone(issuer: GitHubAppIssuer) -> None:
    prepared = issuer.prepare(order())
    issuer.revoke(prepared)
    assert issuer.status(prepared).standing is Standing.GONE


def test_a_lost_answer_counts_as_live_until_its_hour_is_over(
    github: GitHubServer, issuer: GitHubAppIssuer, clock: Clock
) -> None:
    prepared = issuer.prepare(order())
    github.faults = [Fault("cut", happened=True)]
    with pytest.raises(IssuerError) as failed:
        issuer.issue(order(), prepared)
    assert failed.value.happened is None
    assert len(github.alive()) == 1
    issuer.revoke(prepared)
    found = issuer.status(prepared)
    assert found.standing is Standing.LIVE
    assert "which nobody has" in str(found.note)
    clock.ms += 3_800_000
    assert not github.alive()
    assert issuer.status(prepared).standing is Standing.GONE
    assert issuer.status(prepared).by_itself


def test_a_token_that_reaches_further_is_ended_and_not_delivered(github: GitHubServer, issuer: GitHubAppIssuer) -> None:
    prepared = issuer.prepare(order())
    github.grant_more = True
    with pytest.raises(IssuerError, match="reaches further"):
        issuer.issue(order(), prepared)
    assert github.alive() == []
    assert issuer.status(prepared).standing is Standing.GONE


@pytest.mark.parametrize(
    ("reply", "happened", "wait", "sentence"),
    [
        (Reply(401), False, None, "does not accept the app's key"),
        (Reply(403), False, None, "suspended"),
        (Reply(403, headers={"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(START + 90)}), False, 90.0, "rate"),
        (Reply(403, headers={"Retry-After": "60"}), False, 60.0, "rate"),
        (Reply(404), False, None, "no such installation"),
        (Reply(422), False, None, "these repositories"),
        (Reply(429, headers={"Retry-After": "7"}), False, 7.0, "rate"),
        (Reply(429, headers={"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}), False, None, "rate"),
        (Reply(500), None, None, "answered 500"),
        (Reply(502), None, None, "answered 502"),
        (Reply(503, headers={"Retry-After": "3"}), None, 3.0, "answered 503"),
        (Reply(302, headers={"Location": "http://127.0.0.1:1/"}), False, None, "answered 302"),
        (Reply(200), None, None, "answered 200"),
    ],
)
def test_refusals_say_whether_anything_happened(
    github: GitHubServer,
    issuer: GitHubAppIssuer,
    reply: Reply,
    happened: bool | None,
    wait: float | None,
    sentence: str,
) -> None:
    prepared = issuer.prepare(order())
    secret = b'{"message": "hush, ghs_leak"}'
    github.faults = [Fault("status", reply=dataclasses.replace(reply, body=secret))]
    with pytest.raises(IssuerError, match=sentence) as failed:
        issuer.issue(order(), prepared)
    assert (failed.value.happened, failed.value.retry_after_s) == (happened, wait)
    assert "hush" not in str(failed.value)
    assert issuer.status(prepared).standing is (Standing.GONE if happened is False else Standing.LIVE)


@pytest.mark.parametrize("kind", ["cut", "truncated", "garbage", "huge"])
@pytest.mark.parametrize("happened", [False, True])
def test_an_answer_that_did_not_come_whole_is_not_known(
    github: GitHubServer, issuer: GitHubAppIssuer, kind: str, happened: bool
) -> None:
    prepared = issuer.prepare(order())
    github.faults = [Fault(kind, happened, Reply(201, b'{"token": "ghs_x"}'))]
    with pytest.raises(IssuerError) as failed:
        issuer.issue(order(), prepared)
    assert failed.value.happened is None
    assert issuer.status(prepared).standing is Standing.LIVE


@pytest.mark.parametrize("kind", ["silent", "drip"])
def test_a_slow_backend_is_waited_for_so_long(github: GitHubServer, key_file: Path, clock: Clock, kind: str) -> None:
    issuer = an_issuer(github, key_file, clock, timeout_s=0.3)
    prepared = issuer.prepare(order())
    github.faults = [Fault(kind, happened=True)]
    with pytest.raises(IssuerError, match=r"within 0\.3 seconds") as failed:
        issuer.issue(order(), prepared)
    assert failed.value.happened is None


def test_nobody_there_means_nothing_happened(github: GitHubServer, key_file: Path, clock: Clock) -> None:
    issuer = an_issuer(github, key_file, clock, url="http://127.0.0.1:1")
    with pytest.raises(IssuerError, match="cannot be reached") as failed:
        issuer.issue(order(), issuer.prepare(order()))
    assert failed.value.happened is False


def test_a_failed_revocation_is_told_and_can_be_repeated(github: GitHubServer, issuer: GitHubAppIssuer) -> None:
    minted = mint(issuer, order())
    github.faults = [Fault("status", reply=Reply(503)), Fault("cut"), Fault("cut", happened=True)]
    for _ in range(3):
        with pytest.raises(IssuerError):
            issuer.revoke(minted.handle)
    issuer.revoke(minted.handle)  # gone already, as the answer that was lost would have said
    assert issuer.status(minted.handle).standing is Standing.GONE


def test_a_look_that_fails_says_nothing(github: GitHubServer, issuer: GitHubAppIssuer) -> None:
    minted = mint(issuer, order())
    github.faults = [Fault("status", reply=Reply(503)), Fault("status", reply=Reply(403))]
    for _ in range(2):
        with pytest.raises(IssuerError):
            issuer.status(minted.handle)


def test_a_replaced_key_is_read_when_the_old_one_is_refused(
    github: GitHubServer, issuer: GitHubAppIssuer, key_file: Path
) -> None:
    mint(issuer, order())
    new = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    github.key = new.public_key()
    key_file.write_bytes(new.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(IssuerError):
        mint(issuer, order())
    mint(issuer, order())


def test_the_apps_jwt_is_renewed_before_it_ends(github: GitHubServer, issuer: GitHubAppIssuer, clock: Clock) -> None:
    for _ in range(4):
        mint(issuer, order())
        clock.ms += 240_000
    assert len({asked.headers["authorization"] for asked in github.asked}) == 2


def test_what_was_prepared_long_ago_is_not_issued(github: GitHubServer, issuer: GitHubAppIssuer, clock: Clock) -> None:
    prepared = issuer.prepare(order())
    clock.ms += 61_000
    with pytest.raises(IssuerError, match="too long ago"):
        issuer.issue(order(), prepared)
    assert github.asked == []


def test_a_key_that_is_none_does_not_start(github: GitHubServer, tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "not.pem").write_text("-----BEGIN NOTHING-----")
    for name in ("not.pem", "missing.pem"):
        with pytest.raises(ValueError, match=name):
            an_issuer(github, tmp_path / name, clock)


def test_a_url_that_is_not_https_does_not_start(github: GitHubServer, key_file: Path, clock: Clock) -> None:
    for url in ("http://api.github.com", "ftp://x", "https://user@host", "https://host/?q"):
        with pytest.raises(ValueError, match="plain https"):
            an_issuer(github, key_file, clock, url=url)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"installation": "4242"}, "number"),
        ({"repositories": []}, "1 to 500"),
        ({"repositories": ["acme/x"]}, "without their owner"),
        ({"permissions": {}}, "each action"),
        ({"permissions": {"a": {"contents": "owner"}}}, "'a'"),
        ({"repository_parameter": 1}, "name of a parameter"),
        ({"repos": []}, "'repos'"),
    ],
)
def test_settings_are_checked_in_a_sentence(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        settings_of({**SETTINGS, **change})
