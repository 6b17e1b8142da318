"""25 to 28: each proof (issuer, jti) succeeds at most once, on whatever route, across restarts; a bad signature spends
nothing, a refusal does.
"""

from collections.abc import Callable
from typing import Any

import pytest

from broker.jose import Signer
from broker.ledger import Tx
from broker.ledger.commands.replay import spend
from broker.model import Proof
from tests.kit import FORM, GRANTS, JWT_BEARER, OTHER_IDP, Broker, Home, urlencode
from tests.ledger.kit import Do


def replayed(answer: Any, grant: str = GRANTS[0]) -> bool:
    code = ("invalid_grant", 400) if grant == JWT_BEARER else ("invalid_client", 401)
    return (answer.json().get("error"), answer.status_code) == code and "used before" in answer.text


@pytest.mark.parametrize("first", GRANTS, ids=["credentials", "bearer"])
@pytest.mark.parametrize("second", GRANTS, ids=["credentials", "bearer"])
def test_25_the_second_time_is_refused_and_recorded(shared: Broker, first: str, second: str):
    proof = shared.home.assertion()
    assert shared.token(assertion=proof, grant=first).status_code == 200
    size = shared.size
    assert replayed(shared.token(assertion=proof, grant=second), second)
    (event,) = shared.events(start=size)
    assert (event["type"], event["reason"]) == ("refused", "replayed")


@pytest.mark.parametrize("grant", GRANTS, ids=["credentials", "bearer"])
def test_25_of_thirty_two_at_once_one_succeeds(shared: Broker, grant: str):
    size = shared.size
    body = urlencode(shared.token_fields(grant=grant)).encode()
    answers = shared.gather(shared.http.post("/oauth2/token", content=body, headers=FORM) for _ in range(32))
    assert sorted(answer.status_code for answer in answers)[:2] == [200, 400 if grant == JWT_BEARER else 401]
    assert sum(answer.status_code == 200 for answer in answers) == 1
    assert len(shared.events("issued", start=size)) == 1
    assert len(shared.events("refused", start=size)) == 31


def test_25_of_thirty_two_sessions_and_tokens_at_once_one_succeeds(shared: Broker):
    proof = shared.home.assertion()
    body = urlencode(shared.token_fields(assertion=proof)).encode()
    answers = shared.gather(
        [
            *(shared.http.post("/oauth2/token", content=body, headers=FORM) for _ in range(8)),
            *(shared.ask("POST", "/v1/sessions", bearer=proof) for _ in range(8)),
            *(shared.ask("POST", "/v1/tasks", bearer=proof, json={"purpose": "x"}) for _ in range(8)),
            *(shared.ask("GET", "/v1/whoami", bearer=proof) for _ in range(8)),
        ]
    )
    assert sum(answer.status_code < 300 for answer in answers) == 1
    assert {answer.status_code for answer in answers} <= {200, 201, 401}


ROUTES: dict[str, Callable[[Broker, str], Any]] = {
    "token": lambda broker, proof: broker.token(assertion=proof),
    "sessions": lambda broker, proof: broker.request("POST", "/v1/sessions", bearer=proof),
    "tasks": lambda broker, proof: broker.request("POST", "/v1/tasks", bearer=proof, json={"purpose": "x"}),
    "whoami": lambda broker, proof: broker.request("GET", "/v1/whoami", bearer=proof),
    "introspect": lambda broker, proof: broker.form("/oauth2/introspect", {"token": "x"}, bearer=proof),
    "revoke": lambda broker, proof: broker.form("/oauth2/revoke", {"token": "x"}, bearer=proof),
}
SPENT_BY_REFUSAL: dict[str, Callable[[Broker, str], Any]] = {
    "never": lambda broker, proof: broker.token(assertion=proof, scope="invoices:write"),
    "approval": lambda broker, proof: broker.credit(6000, assertion=proof),
    "unknown-task": lambda broker, proof: broker.token(assertion=proof, task="tsk_00000000_1"),
    "wrong-kind": lambda broker, proof: broker.request("GET", "/v1/agents", bearer=proof),
    "missing-task": lambda broker, proof: broker.request("GET", "/v1/tasks/tsk_00000000_1", bearer=proof),
    "malformed-task": lambda broker, proof: broker.request("POST", "/v1/tasks", bearer=proof, json={}),
    "bad-query": lambda broker, proof: broker.request("GET", "/v1/tasks?limit=0", bearer=proof),
    "other-client_id": lambda broker, proof: broker.form(
        "/oauth2/introspect", {"token": "x", "client_id": "y"}, bearer=proof
    ),
}


@pytest.mark.parametrize("first", ROUTES | SPENT_BY_REFUSAL)
def test_25_a_proof_is_good_for_one_request_on_any_route(shared: Broker, first: str):
    proof = shared.home.assertion()
    answer = (ROUTES | SPENT_BY_REFUSAL)[first](shared, proof)
    assert (answer.status_code < 300) == (first in ROUTES)
    grants = len(shared.query("SELECT seq FROM grants"))
    for again in ROUTES.values():
        assert again(shared, proof).status_code == 401
    assert len(shared.query("SELECT seq FROM grants")) == grants


def test_25_after_a_restart_on_the_same_ledger(home: Home, start: Callable[..., Broker]):
    first = start()
    proofs = [home.assertion() for _ in range(3)]
    assert first.token(assertion=proofs[0]).status_code == 200
    assert first.token(assertion=proofs[1], scope="no:such").status_code == 400
    assert first.request("GET", "/v1/whoami", bearer=proofs[2]).status_code == 200
    first.close()
    second = start()
    for proof in proofs:
        assert replayed(second.token(assertion=proof))


def test_25_two_processes_on_one_ledger(home: Home, start: Callable[..., Broker]):
    one, two = start(), start()
    proof = home.assertion()
    assert one.token(assertion=proof).status_code == 200
    assert replayed(two.token(assertion=proof))


def test_27_each_issuer_has_its_own_jtis(shared: Broker):
    home, jti = shared.home, "the-same"
    assert shared.token("dispute-bot", assertion=home.assertion(jti=jti)).status_code == 200
    assert shared.token("other-bot", assertion=home.assertion(iss=OTHER_IDP, jti=jti)).status_code == 200
    assert shared.request("GET", "/v1/whoami", bearer=home.operator(jti=jti)).status_code == 200
    assert shared.request("GET", "/v1/whoami", bearer=home.operator("reader", jti=jti)).status_code == 200
    assert replayed(
        shared.token("data-bot", assertion=home.assertion("data-bot", jti=jti))
    )  # same issuer, other subject


def test_26_a_bad_signature_spends_nothing(shared: Broker):
    claims = shared.home.claims()
    forged = Signer(private_key=shared.home.other_idp._key, kid=shared.home.idp.kid).sign("JWT", claims)
    before = shared.query("SELECT count(*) FROM proofs")
    assert shared.token(assertion=forged).status_code == 401
    assert shared.request("GET", "/v1/whoami", bearer=forged).status_code == 401
    for bad in ({"aud": "https://elsewhere"}, {"exp": shared.clock.s - 1}, {"sub": "nobody"}):
        assert shared.token(assertion=shared.home.idp.sign("JWT", {**claims, **bad})).status_code == 401
    assert shared.query("SELECT count(*) FROM proofs") == before
    assert shared.token(assertion=shared.home.idp.sign("JWT", claims)).status_code == 200


def test_reusable_identities_may_be_shown_again_while_they_live(broker: Broker):
    svid = broker.home.svid()
    for _ in range(3):
        assert broker.token("mesh-bot", assertion=svid).status_code == 200
        assert broker.request("GET", "/v1/whoami", bearer=svid).status_code == 200
    assert broker.query("SELECT count(*) FROM proofs") == [(0,)]
    broker.clock.forward(61)
    assert broker.token("mesh-bot", assertion=svid).status_code == 401


def test_19_a_mark_outlives_its_proof(broker: Broker):
    proof = broker.home.assertion()
    assert broker.token(assertion=proof).status_code == 200
    for _ in range(40):
        broker.clock.forward(5)
        broker.do("housekeep")
        assert broker.token(assertion=proof).status_code == 401
    broker.do("housekeep")
    assert broker.query("SELECT count(*) FROM proofs") == [(0,)]  # 28: the table is bounded
    broker.clock.now -= 200_000
    assert broker.token(assertion=proof).status_code == 401


def test_28_a_single_use_proof_needs_a_bounded_jti(shared: Broker):
    home = shared.home
    for jti in (None, "", 7, "x" * 256, "x" * 6_000, ["a"], {"a": 1}, "a\x00b", "a\nb"):
        assert shared.token(assertion=home.assertion(jti=jti)).status_code == 401
        assert shared.request("GET", "/v1/whoami", bearer=home.operator(jti=jti)).status_code == 401


def test_28_a_full_table_is_pruned_in_rounds(broker: Broker):
    clock, issuer = broker.clock, "https://crowd.example.com"

    def crowd(tx: Tx) -> None:
        for n in range(20_000):
            assert spend(tx, Proof(issuer, f"{n:06x}", clock.now + 10_000))

    broker.process.ledger.commit([Do(crowd)])
    broker.token()  # one that lives on, at the end of the table
    clock.forward(75)
    for _ in range(4):
        broker.do("housekeep")
    assert broker.query("SELECT count(*) FROM proofs") == [(1,)]
