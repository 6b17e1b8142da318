"""What the SDK's verification costs a service: the first time a token is seen, and every time after that.

Beside: a bare ES256 verification of the very same tokens, alternating, on the same core. On: all six steps of the
verifier, strict mode, connected to a broker and fresh, with kills in force that cover other tokens.
"""

from collections.abc import Callable, Sequence
from statistics import median
from time import perf_counter_ns

import jwt
import uvloop
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from bench.client import Operator, Tokens
from bench.machine import on_core
from bench.run import Run
from bench.serving import serving
from bench.site import AUDIENCE, SCOPE, Site, agent_name, signer_of, verifier_name
from broker.jose.parse import parse
from broker.sdk.identity import KeyIdentity
from broker.sdk.verifier import Verifier

TOKENS, KILLS = 500, 200
_ES256 = ec.ECDSA(hashes.SHA256())


def measure(run: Run) -> None:
    """`verify_ratio` and `verify_cached_us`."""
    site = run.site()
    with serving(site, core=run.server_core):
        source, operator = Tokens(site), Operator(site)
        for _ in range(KILLS):
            token = source.get(agent_name(1))
            operator.kill("grant", jwt.decode(token, options={"verify_signature": False})["jti"])
        tokens = [source.get(agent_name(0)) for _ in range(TOKENS)]
        with on_core(min(run.load_cores)):
            times = uvloop.run(_measure(site, tokens, rounds=run.times(15, 5)))
    ratios = [first / bare for first, bare in zip(times["first"], times["bare"], strict=True)]
    run.book.figure(
        "verify_ratio",
        median(ratios),
        note=f"{median(times['first']):.1f} us against {median(times['bare']):.1f} us",
    )
    run.book.figure(
        "verify_cached_us",
        median(times["again"]),
        note=f"{median(times['after a kill']):.1f} us right after a kill, when every one is compared anew",
    )
    run.book.detail("verification", {name: [round(us, 2) for us in each] for name, each in times.items()})


async def _measure(site: Site, tokens: Sequence[str], *, rounds: int) -> dict[str, list[float]]:
    """Microseconds for one token, by round."""
    name = verifier_name(0)
    identity = KeyIdentity(client_id=name, key=signer_of(name)._key)  # noqa: SLF001  (the bench's own key)
    async with Verifier(issuer=site.issuer, audience=AUDIENCE, identity=identity) as verifier:
        bare = _bare(verifier, tokens)

        def verify_all() -> None:
            for token in tokens:
                verifier.verify(token, scopes=[SCOPE])

        times: dict[str, list[float]] = {"bare": [], "first": [], "again": [], "after a kill": []}
        for _ in range(rounds):
            times["bare"].append(_us(bare, len(tokens)))
            verifier._seen.clear()  # noqa: SLF001  (as if no token had been seen)
            times["first"].append(_us(verify_all, len(tokens)))
            times["again"].append(_us(verify_all, len(tokens)))
            verifier._view.generation += 1  # noqa: SLF001  (as if a kill of something else had arrived)
            times["after a kill"].append(_us(verify_all, len(tokens)))
    return times


def _bare(verifier: Verifier, tokens: Sequence[str]) -> Callable[[], None]:
    """The library's verification of the same signatures, everything else done before."""
    ready = []
    for token in tokens:
        parsed = parse(token)
        assert verifier._published is not None  # noqa: SLF001
        key = verifier._published.find(parsed.header.kid, "ES256").public  # noqa: SLF001
        assert isinstance(key, ec.EllipticCurvePublicKey)
        r, s = int.from_bytes(parsed.signature[:32]), int.from_bytes(parsed.signature[32:])
        ready.append((key.verify, encode_dss_signature(r, s), parsed.signing_input))

    def verify_all() -> None:
        for verify, signature, data in ready:
            verify(signature, data, _ES256)

    return verify_all


def _us(work: Callable[[], None], number: int) -> float:
    start = perf_counter_ns()
    work()
    return (perf_counter_ns() - start) / 1000 / number
