"""Key sets over time: case 84, a flood of unknown key ids, and issuers or files that fail for a while."""

import asyncio
import os

import pytest
import structlog

from broker.attest import AttestationFailed, KeysNeeded
from broker.attest.fetch import Endpoint, FetchFailed
from broker.attest.jwks import FetchedKeys, FileKeys
from broker.jose import KeyRefused, UnknownKey, load_jwks
from tests.jose.forge import OTHER_EC, dump, jwk


class Remote:
    """An issuer whose answer can be changed, and that can be made to wait or fail."""

    def __init__(self) -> None:
        self.asked = 0
        self.keys = [jwk()]
        self.failing = False
        self.gate: asyncio.Event | None = None

    async def __call__(self, endpoint: Endpoint) -> bytes:
        self.asked += 1
        if self.gate is not None:
            await self.gate.wait()
        if self.failing:
            raise FetchFailed("down")
        return dump({"keys": self.keys})


class Clock:
    def __init__(self) -> None:
        self.ms = 1_000_000

    def __call__(self) -> int:
        return self.ms


def load(document: bytes):
    keys = load_jwks(document)
    if not keys.keys:
        raise KeyRefused("empty")
    return keys


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def remote() -> Remote:
    return Remote()


@pytest.fixture
def keys(remote: Remote, clock: Clock) -> FetchedKeys:
    endpoint = Endpoint("https://idp.example/jwks")
    return FetchedKeys(
        source="idp", endpoint=endpoint, load=load, refresh_s=300, max_stale_s=3_600, fetch=remote, clock=clock
    )


def find(keys, kid: str | None = "k1"):
    """As a request does it: look, refresh if told to, look again."""
    try:
        return keys.find(kid, "ES256")
    except KeysNeeded:
        asyncio.run(keys.refresh())
    return keys.find(kid, "ES256")


def test_i84_a_flood_of_unknown_kids_costs_one_fetch_in_30_seconds(keys, remote, clock) -> None:
    find(keys)
    start = remote.asked
    for second in range(91):
        for n in range(20):
            with pytest.raises(UnknownKey):
                find(keys, f"invented-{second}-{n}")
        assert find(keys).kid == "k1", "a good key is never evicted"
        clock.ms += 1_000
    assert remote.asked - start == 3


def test_i84_a_kid_that_the_issuer_does_not_have_is_not_asked_for_again_soon(keys, remote, clock) -> None:
    find(keys)
    clock.ms += 31_000
    with pytest.raises(UnknownKey):
        find(keys, "gone")
    for _ in range(8):
        clock.ms += 30_000
        with pytest.raises(UnknownKey):
            find(keys, "gone")
    assert remote.asked == 2
    clock.ms += 300_000
    with pytest.raises(UnknownKey):
        find(keys, "gone")
    assert remote.asked == 3


def test_i84_what_is_remembered_of_unknown_kids_is_bounded(keys, clock) -> None:
    find(keys)
    for n in range(2_000):
        with pytest.raises(UnknownKey):
            keys.find(f"invented-{n}", "ES256")
    assert len(keys._absent) <= 256


def test_a_new_key_is_found_by_one_fetch(keys, remote, clock) -> None:
    find(keys)
    remote.keys = [jwk(), jwk(OTHER_EC, kid="k2")]
    with pytest.raises(UnknownKey):
        find(keys, "k2")  # too soon
    clock.ms += 300_001
    assert find(keys, "k2").kid == "k2"
    assert remote.asked == 2


def test_no_kid_is_no_reason_to_fetch(keys, remote, clock) -> None:
    remote.keys = [jwk(), jwk(OTHER_EC, kid="k2")]
    find(keys)
    clock.ms += 60_000
    with pytest.raises(UnknownKey):
        keys.find(None, "ES256")


def test_requests_share_one_fetch_and_one_that_gives_up_does_not_stop_it(keys, remote) -> None:
    async def scene() -> None:
        remote.gate = asyncio.Event()
        impatient = asyncio.create_task(keys.refresh())
        others = [asyncio.create_task(keys.refresh()) for _ in range(20)]
        await asyncio.sleep(0)
        with pytest.raises(KeysNeeded):  # joining a fetch under way is always allowed
            keys.find("k1", "ES256")
        impatient.cancel()
        remote.gate.set()
        await asyncio.gather(*others)
        assert impatient.cancelled()

    asyncio.run(scene())
    assert remote.asked == 1
    assert keys.find("k1", "ES256")


def test_stale_keys_serve_while_the_issuer_is_down_and_no_longer_than_allowed(keys, remote, clock) -> None:
    find(keys)
    remote.failing = True
    with structlog.testing.capture_logs() as logs:
        for _ in range(120):
            clock.ms += 30_000
            if keys.due():
                asyncio.run(keys.refresh())
            assert keys.find("k1", "ES256")
        clock.ms += 1
        with pytest.raises(AttestationFailed) as refused:
            find(keys)
    assert refused.value.reason == "keys_unavailable"
    assert refused.value.retry_after_s is not None
    assert 0 < refused.value.retry_after_s <= 30
    assert {entry["event"] for entry in logs} == {"trust_keys_not_renewed"}
    remote.failing = False
    clock.ms += 30_000
    assert find(keys)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param([], id="I83-empty"),
        pytest.param([{"kty": "oct", "k": "AAAA"}], id="A2-symmetric"),
        pytest.param([jwk(), jwk(OTHER_EC)], id="A7-duplicate-kid"),
    ],
)
def test_a_bad_answer_does_not_replace_good_keys(keys, remote, clock, answer) -> None:
    find(keys)
    remote.keys = answer
    clock.ms += 400_000
    assert keys.due()
    asyncio.run(keys.refresh())
    assert keys.find("k1", "ES256")


def test_a_key_that_the_issuer_withdrew_is_gone_after_the_next_fetch(keys, remote, clock) -> None:
    find(keys)
    remote.keys = [jwk(OTHER_EC, kid="k2")]
    clock.ms += 300_000
    asyncio.run(keys.refresh())
    with pytest.raises(UnknownKey):
        keys.find("k1", "ES256")


def test_an_issuer_that_is_not_up_yet_is_asked_again_soon_then_less_often(keys, remote, clock) -> None:
    remote.failing = True
    for _ in range(600):
        with pytest.raises(AttestationFailed):
            find(keys)
        clock.ms += 100
    assert 5 <= remote.asked <= 7  # after 1, 2, 4, 8, 16, 30 seconds
    remote.failing = False
    clock.ms += 30_000
    assert find(keys)


def test_a_defect_in_loading_is_not_hidden(remote, clock) -> None:
    def broken(_: bytes):
        raise RuntimeError("defect")

    keys = FetchedKeys(
        source="x",
        endpoint=Endpoint("https://x"),
        load=broken,
        refresh_s=300,
        max_stale_s=3_600,
        fetch=remote,
        clock=clock,
    )
    with pytest.raises(RuntimeError):
        asyncio.run(keys.refresh())
    clock.ms += 60_000
    with pytest.raises(RuntimeError):  # and nothing is left behind that blocks the next attempt
        asyncio.run(keys.refresh())


# --- Files ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path):
    return tmp_path / "jwks.json"


@pytest.fixture
def file(path, clock) -> FileKeys:
    return FileKeys(source="file", path=path, load=load, max_stale_s=60, clock=clock)


def write(path, *entries, at: int) -> None:
    path.write_bytes(dump({"keys": list(entries)}))
    os.utime(path, ns=(at, at))


def test_a_file_is_read_again_when_it_changes(file, path) -> None:
    write(path, jwk(), at=1)
    assert file.find("k1", "ES256")
    assert not file.due()
    write(path, jwk(OTHER_EC, kid="k2"), at=2)
    assert file.find("k2", "ES256")
    with pytest.raises(UnknownKey):
        file.find("k1", "ES256")


def test_a_symlink_that_is_swapped_counts_as_a_change(file, path, tmp_path) -> None:
    for name, entry in (("one", jwk()), ("two", jwk(OTHER_EC, kid="k2"))):
        write(tmp_path / name, entry, at=1)
    path.symlink_to(tmp_path / "one")
    assert file.find("k1", "ES256")
    (tmp_path / "next").symlink_to(tmp_path / "two")
    (tmp_path / "next").replace(path)
    assert file.find("k2", "ES256")


def test_a_missing_file_is_waited_for(file, path) -> None:
    with structlog.testing.capture_logs() as logs:
        for _ in range(5):
            with pytest.raises(AttestationFailed):
                file.find("k1", "ES256")
    assert len(logs) == 1, "said once, not on every request"
    write(path, jwk(), at=1)
    assert file.find("k1", "ES256")


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b'{"keys":[', id="half-written"),
        pytest.param(b'{"keys":[' + b" " * 300_000 + b"]}", id="I83-large"),
        pytest.param(b'{"keys":[{"kty":"oct","k":"AAAA"}]}', id="A2-symmetric"),
    ],
)
def test_a_bad_version_is_not_taken_and_the_last_good_one_ages(file, path, clock, content: bytes) -> None:
    write(path, jwk(), at=1)
    file.find("k1", "ES256")
    path.write_bytes(content)
    clock.ms += 60_000
    assert file.find("k1", "ES256")
    clock.ms += 1
    with pytest.raises(AttestationFailed) as refused:
        file.find("k1", "ES256")
    assert refused.value.reason == "keys_unavailable"
    write(path, jwk(), at=5)
    assert file.find("k1", "ES256")


def test_an_unchanged_file_does_not_age(file, path, clock) -> None:
    write(path, jwk(), at=1)
    file.find("k1", "ES256")
    for _ in range(5):
        clock.ms += 59_000
        assert file.find("k1", "ES256")


def test_a_pipe_is_not_a_file_and_does_not_hang(file, path) -> None:
    os.mkfifo(path)
    with pytest.raises(AttestationFailed):
        file.find("k1", "ES256")
