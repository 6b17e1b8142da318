"""A broker for other people's tests: in this process, with throwaway keys, and doing what the test says.

    async def test_my_service_stops_at_a_kill():
        broker = FakeBroker()
        async with broker.verifier(audience="https://invoices.test") as verifier:
            token = broker.token(audience="https://invoices.test", scope="invoices:read")
            verifier.verify(token)
            await broker.acknowledged(broker.kill(agent="agent"))
            with pytest.raises(TokenKilled):
                verifier.verify(token)

It speaks the broker's wire format and keeps its promises about order; it decides nothing: every request is granted
until `refuse` says otherwise. `FakeBroker.serve` puts it on a loopback port for services in other processes.
"""

from broker.sdk.testkit.broker import FakeBroker, Seen

__all__ = ["FakeBroker", "Seen"]
