"""RFC 7009 by the holder: what is over cannot be ended again, or one agent could fill the feed of every verifier."""

from tests.kit import Broker


def test_a_token_is_revoked_once(broker: Broker) -> None:
    token = broker.granted()["access_token"]
    for _ in range(3):
        answer = broker.form("/oauth2/revoke", {"token": token}, bearer=broker.session("dispute-bot"))
        assert answer.status_code == 200
    assert len(broker.events("killed")) == 1
    assert not broker.active(token)


def test_an_expired_token_needs_no_revocation(broker: Broker) -> None:
    token = broker.granted()["access_token"]
    broker.clock.forward(600)
    answer = broker.form("/oauth2/revoke", {"token": token}, bearer=broker.session("dispute-bot"))
    assert answer.status_code == 200
    assert not broker.events("killed")
