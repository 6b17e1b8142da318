"""Which row judges a token, what a refusal shows, and what a reload keeps."""

import asyncio

import pytest

from broker.attest import AttestationFailed, AttesterPool, KeysNeeded
from broker.attest.trust import KeySource
from broker.errors import ConfigurationInvalid
from tests.jose.forge import AUDIENCE, OTHER_EC, dump, jwk, token

from .rows import NOW_MS, OIDC, assertion, attest, cluster_row, key_row, oidc_row, oidc_token, source, spiffe_row


class Issuer:
    """Stands in for an https issuer: counts how often it is asked."""

    def __init__(self, *keys) -> None:
        self.keys = keys or (jwk(),)
        self.asked = []

    async def __call__(self, endpoint) -> bytes:
        self.asked.append(endpoint.url)
        return dump({"keys": list(self.keys)})


REMOTE = KeySource(url="https://idp.example/jwks")


def test_an_unknown_issuer_is_refused_without_a_look_outside() -> None:
    issuer = Issuer()
    pool = AttesterPool([oidc_row(jwks=REMOTE)], fetch=issuer)
    for iss in ("https://evil.example", "https://169.254.169.254", OIDC + "/"):
        with pytest.raises(AttestationFailed) as refused:
            asyncio.run(pool.attest_fresh(oidc_token(iss=iss), audiences={AUDIENCE}, now_ms=NOW_MS))
        assert refused.value.reason == "unknown_issuer"
    assert issuer.asked == []


def test_the_row_s_keys_are_fetched_once_and_then_at_hand() -> None:
    issuer = Issuer()
    pool = AttesterPool([oidc_row(jwks=REMOTE)], fetch=issuer)
    with pytest.raises(KeysNeeded) as needed:
        pool.attest(oidc_token(), audiences={AUDIENCE}, now_ms=NOW_MS)
    asyncio.run(pool.refresh(needed.value.source))
    assert pool.attest(oidc_token(), audiences={AUDIENCE}, now_ms=NOW_MS).trust == "idp"
    assert issuer.asked == ["https://idp.example/jwks"]


def test_attest_fresh_does_both() -> None:
    issuer = Issuer()
    pool = AttesterPool([oidc_row(jwks=REMOTE)], fetch=issuer)
    assert asyncio.run(pool.attest_fresh(oidc_token(), audiences={AUDIENCE}, now_ms=NOW_MS)).subject == "user-7"
    with pytest.raises(AttestationFailed) as refused:
        asyncio.run(pool.attest_fresh(token({"iss": OIDC}, header={"kid": "k9"}), audiences={AUDIENCE}, now_ms=NOW_MS))
    assert refused.value.reason == "unknown_key"
    assert len(issuer.asked) == 1


def test_refreshing_a_row_that_is_gone_does_nothing() -> None:
    asyncio.run(AttesterPool([]).refresh("gone"))


def test_refresh_due_renews_what_is_old() -> None:
    issuer, clock = Issuer(), [0]
    pool = AttesterPool([oidc_row(jwks=REMOTE), key_row()], fetch=issuer, clock=lambda: clock[0])
    for at in (0, 1_000, 299_000, 300_000, 301_000, 600_000):
        clock[0] = at
        asyncio.run(pool.refresh_due())
    assert len(issuer.asked) == 3


def test_presented_is_what_the_sender_said_in_harmless_strings() -> None:
    with pytest.raises(AttestationFailed) as refused:
        attest(oidc_row(), oidc_token(aud=["a", "b", 1], sub="x" * 400, team="secret"))
    assert refused.value.presented == {"iss": OIDC, "aud": "a b"}
    with pytest.raises(AttestationFailed) as refused:
        attest(oidc_row(), oidc_token(iss="evil\x1b[2J", sub=7))
    assert refused.value.presented == {"aud": AUDIENCE}


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([oidc_row(), oidc_row(id="again")], id="one-issuer-twice"),
        pytest.param([oidc_row(), cluster_row(issuer=OIDC)], id="one-issuer-two-kinds"),
        pytest.param([oidc_row(), key_row(subject=OIDC)], id="a-client-named-like-an-issuer"),
        pytest.param([key_row(subject=OIDC), oidc_row()], id="an-issuer-named-like-a-client"),
        pytest.param([spiffe_row(), spiffe_row(id="again")], id="one-domain-twice"),
        pytest.param([key_row(), key_row(subject="other")], id="one-id-twice"),
        pytest.param([key_row(jwks=KeySource(keys=[]))], id="no-keys"),
        pytest.param([key_row(jwks=source(use="enc"))], id="A12-only-an-encryption-key"),
        pytest.param([key_row(jwks=KeySource(keys=[{"kty": "oct", "k": "c2VjcmV0", "kid": "k1"}]))], id="A2-oct"),
        pytest.param([key_row(jwks=KeySource(keys=[jwk(), jwk(OTHER_EC)]))], id="A7-duplicate-kid"),
    ],
)
def test_rows_that_cannot_be_used_together(rows) -> None:
    with pytest.raises(ConfigurationInvalid) as refused:
        AttesterPool(rows)
    assert "trust " in str(refused.value)


def test_a_reload_keeps_the_keys_of_unchanged_rows() -> None:
    issuer = Issuer()
    first = AttesterPool([oidc_row(jwks=REMOTE), key_row()], fetch=issuer)
    asyncio.run(first.refresh("idp"))
    same = AttesterPool([oidc_row(jwks=REMOTE)], previous=first, fetch=issuer)
    assert same.attest(oidc_token(), audiences={AUDIENCE}, now_ms=NOW_MS)
    changed = AttesterPool([oidc_row(jwks=REMOTE, max_lifetime_s=299)], previous=first, fetch=issuer)
    with pytest.raises(KeysNeeded):
        changed.attest(oidc_token(), audiences={AUDIENCE}, now_ms=NOW_MS)
    with pytest.raises(AttestationFailed):
        same.attest(assertion(), audiences={AUDIENCE}, now_ms=NOW_MS)


def test_profiles_for_many_audiences_do_not_pile_up() -> None:
    pool = AttesterPool([key_row()])
    for n in range(100):
        assert pool.attest(assertion(aud=f"https://{n}.example"), audiences={f"https://{n}.example"}, now_ms=NOW_MS)
    with pytest.raises(AttestationFailed):
        pool.attest(assertion(aud="https://1.example"), audiences={"https://2.example"}, now_ms=NOW_MS)


def test_a_client_with_two_remote_rows_makes_one_fetch_for_a_request() -> None:
    issuer = Issuer(jwk(OTHER_EC, kid="k2"))
    rows = [key_row(jwks=REMOTE), key_row(id="next", jwks=KeySource(url="https://next.example/jwks"))]
    pool = AttesterPool(rows, fetch=issuer)
    with pytest.raises(AttestationFailed) as refused:
        asyncio.run(pool.attest_fresh(assertion(), audiences={AUDIENCE}, now_ms=NOW_MS))
    assert refused.value.reason == "unknown_key"
    assert len(issuer.asked) == 1
