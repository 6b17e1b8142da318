"""Project Wycheproof's JOSE vectors against the strict layer, where a checkout is at hand (`WYCHEPROOF_DIR`).

The variable points at the checkout's `testvectors_v1`. The rows that common libraries accept wrongly have equivalents
of our own in the other files here, so that they are always covered.
"""

import json
import os
from pathlib import Path

import pytest

from broker.jose import JoseError, load_jwks, parse
from broker.jose.encoding import b64decode

DIRECTORY = os.environ.get("WYCHEPROOF_DIR")

pytestmark = pytest.mark.skipif(
    DIRECTORY is None, reason="set WYCHEPROOF_DIR to the testvectors_v1 of a checkout of C2SP/wycheproof"
)

_SECRET = ("d", "p", "q", "dp", "dq", "qi")

STRICTER = {
    "json_web_signature": {
        346: "PS384 under a JWK that says PS256: a key has one algorithm",
        347: "its JWK says ES521, which does not exist",
        350: "as 346",
        351: "as 347",
    },
}
"""Vectors that are called valid and refused here, on purpose."""


def vectors(name: str):
    if DIRECTORY is None:
        return
    document = json.loads((Path(DIRECTORY) / f"{name}_test.json").read_text())
    for group in document["testGroups"]:
        for test in group["tests"]:
            if "jws" in test:
                yield pytest.param(name, group, test, id=f"{name}-{test['tcId']}")


def public_set(group) -> dict:
    """The group's keys as a public JWKS: what an issuer would publish."""
    key = group.get("public") or group["private"]
    keys = key.get("keys", [key])
    return {"keys": [{name: value for name, value in entry.items() if name not in _SECRET} for entry in keys]}


def verified(group, jws) -> bool:
    """Whether the strict layer takes the vector. Payloads here are no JSON, so an empty object stands in to `parse`."""
    parts = jws.split(".") if isinstance(jws, str) else []
    if len(parts) != 3:
        return False  # `parse` says the same: see A13 and A14 in test_parse
    try:
        parsed = parse(f"{parts[0]}.e30.{parts[2]}")
        b64decode(parts[1].encode("ascii"))
        key = load_jwks(public_set(group)).find(parsed.header.kid, parsed.header.alg)
        key.verify(parsed.header.alg, f"{parts[0]}.{parts[1]}".encode(), parsed.signature)
    except (JoseError, UnicodeEncodeError):
        return False
    return True


def symmetric(group) -> bool:
    return any(entry.get("kty") == "oct" for entry in public_set(group)["keys"])


@pytest.mark.parametrize(
    ("name", "group", "test"),
    [*vectors("json_web_signature"), *vectors("json_web_key"), *vectors("json_web_crypto")],
)
def test_vector(name: str, group, test) -> None:
    accepted = verified(group, test["jws"])
    if test["result"] != "valid":
        assert not accepted, test["comment"]
    elif symmetric(group):
        assert not accepted, "there are no shared secrets here"
    elif not accepted:
        assert test["tcId"] in STRICTER.get(name, {}), test["comment"]
