"""Fresh client assertions in bulk: each request of a burst needs one that was never presented before.

They are signed before the burst, by all cores, and written as whole HTTP requests, so that the load generator has
nothing to do but to send them.
"""

import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import cache
from itertools import count, islice
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import orjson

from bench.machine import all_cores
from bench.site import AUDIENCE, SCOPE, agent_name, signer_of
from broker.jose import Signer
from broker.sdk.identity import fresh_jti

LIFETIME_S = 240
JWT_BEARER = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
SEPARATOR = b"\x00"
_CLIENT = {"grant_type": "client_credentials", "client_assertion_type": JWT_BEARER, "resource": AUDIENCE}
_PLAIN_FORM = urlencode({**_CLIENT, "scope": SCOPE, "client_assertion": ""})
_numbers = count(os.getpid() << 24)


def assertion(name: str, audience: str, *, lifetime_s: int = LIFETIME_S) -> str:
    """One assertion by which `name` authenticates itself to `audience`."""
    return _sign(_signer(name), name, audience, f"{next(_numbers):x}", lifetime_s)


class Assertions:
    """A pool of signers. Used from the one process that drives the bench."""

    def __init__(self, pool: ProcessPoolExecutor, jobs: int) -> None:
        self._pool = pool
        self._jobs = jobs

    def requests(self, target: Path, *, url: str, audience: str, number: int, agents: int, novel: bool = False) -> None:
        """Write `number` token requests to `url` into the file `target`, their assertions made out to `audience`. With
        `novel`, each has a parameter that none had before, so that no decision can be remembered.
        """
        share = -(-number // self._jobs)
        parts = self._pool.map(_requests, [(url, audience, agents, share, novel)] * self._jobs)
        with target.open("wb") as file:
            for part in parts:
                file.write(part)


@contextmanager
def assertions() -> Iterator[Assertions]:
    """A pool of as many signers as there are cores."""
    cores = all_cores()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        len(cores), mp_context=context, initializer=os.sched_setaffinity, initargs=(0, cores)
    ) as pool:
        yield Assertions(pool, len(cores))


def _form(*, region: str | None) -> str:
    """All of the form but the assertion, which is to be appended."""
    if region is None:
        return _PLAIN_FORM
    details = [{"type": "task_action", "actions": [SCOPE], "parameters": {"region": region}}]
    return urlencode({**_CLIENT, "authorization_details": orjson.dumps(details), "client_assertion": ""})


@cache
def _signer(name: str) -> Signer:
    return signer_of(name)


def _sign(signer: Signer, name: str, audience: str, jti: str, lifetime_s: int) -> str:
    now = int(time.time())
    claims = {"iss": name, "sub": name, "aud": audience, "iat": now, "exp": now + lifetime_s, "jti": jti}
    return signer.sign("JWT", claims)


def _requests(what: tuple[str, str, int, int, bool]) -> bytes:
    url, audience, agents, number, novel = what
    return SEPARATOR.join(islice(endless_requests(url, audience, agents, novel=novel), number)) + SEPARATOR


def endless_requests(url: str, audience: str, agents: int, *, novel: bool = False) -> Iterator[bytes]:
    """Whole HTTP requests for tokens, of each agent in turn, each signed when it is taken."""
    parts = urlsplit(url)
    stamp = f"{next(_numbers):x}.{time.time_ns():x}"
    names = [agent_name(n) for n in range(agents)]
    for n in count():
        name = names[n % agents]
        body = _form(region=f"{stamp}.{n:x}" if novel else None) + _sign(
            _signer(name), name, audience, fresh_jti(time.time_ns() // 1_000_000), LIFETIME_S
        )
        yield (
            f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\n"
            f"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {len(body)}\r\n\r\n{body}"
        ).encode()
