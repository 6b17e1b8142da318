"""The topology of deploy/compose, for real, on this machine: `python -m deploy.local`.

It issues a token through nginx, has a verifier follow each broker, kills at the first, and shows the refusal at the
second. Everything is stopped and removed at the end; `--keep` leaves it running until Ctrl-C, to look at.
"""

import asyncio
import signal
import sys
import time
from contextlib import suppress

import httpx2

from broker.sdk.errors import TokenKilled
from broker.sdk.verifier import Verifier
from deploy.cluster import AUDIENCE, BROKERS, WITHIN_S, Cluster, Missing, running


async def story(cluster: Cluster) -> None:
    """Issue, verify at both brokers, kill at the first, be refused at both, see it in the receipt."""
    say = cluster.say
    with cluster.client() as http:
        async with cluster.verifier(BROKERS[0]) as first, cluster.verifier(BROKERS[1]) as second:
            granted = http.post("/oauth2/token", data=_token_form(cluster)).raise_for_status().json()
            say(f"issued through nginx: a token under {granted['task']}, decision {granted['decision_id']}")
            for name, verifier in zip(BROKERS, (first, second), strict=True):
                say(f"verifier at {name}: accepts it, for {verifier.verify(granted['access_token']).agent}")
            killed = _pause(cluster)
            say(f"paused dispute-bot at {BROKERS[0]}: {killed['id']}, position {killed['position']}")
            for name, verifier in zip(BROKERS, (first, second), strict=True):
                waited = await _refused(verifier, granted["access_token"])
                say(f"verifier at {name}: refuses it, {waited:.0f} ms after the answer to the kill")
            refused = http.post("/oauth2/token", data=_token_form(cluster))
            say(f"asked again through nginx: {refused.status_code} {refused.json()['outcome']}")
            receipt = await _receipt(cluster, killed["id"])
            told = f"{receipt['applied']} of {receipt['expected']} verifiers reported applied"
            say(f"receipt from {BROKERS[1]}: {told}, the slowest after {receipt['slowest_ms']} ms")
        _outside(cluster, http)


def _token_form(cluster: Cluster) -> dict[str, str]:
    return {
        "grant_type": "client_credentials",
        "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
        "client_assertion": cluster.workload("dispute-bot"),
        "resource": AUDIENCE,
    }


def _as_operator(cluster: Cluster) -> dict[str, str]:
    proof = cluster.assertion(cluster.operator, "client-authentication+jwt", "operator", "operator")
    return {"authorization": f"Bearer {proof}"}


def _pause(cluster: Cluster) -> dict[str, str]:
    url = cluster.url(BROKERS[0], "control") + "/v1/agents/dispute-bot/pause"
    answer = httpx2.post(url, json={"reason": "a look at the cluster"}, headers=_as_operator(cluster), timeout=20)
    body: dict[str, str] = answer.raise_for_status().json()
    return body


async def _refused(verifier: Verifier, token: str) -> float:
    began = time.monotonic()
    while time.monotonic() - began < WITHIN_S:
        try:
            verifier.verify(token)
        except TokenKilled:
            return (time.monotonic() - began) * 1000
        await asyncio.sleep(0.001)
    raise RuntimeError("a killed token is accepted")


async def _receipt(cluster: Cluster, kill: str) -> dict[str, int]:
    """What the other broker says of the kill, once every verifier has reported."""
    until = time.monotonic() + WITHIN_S
    async with httpx2.AsyncClient(timeout=20) as http:
        while True:
            url = cluster.url(BROKERS[1], "control") + f"/v1/kills/{kill}"
            answer = (await http.get(url, params={"wait_ms": 1000}, headers=_as_operator(cluster))).raise_for_status()
            verifiers: dict[str, int] = answer.json()["verifiers"]
            if verifiers["expected"] == verifiers["applied"] or time.monotonic() > until:
                return verifiers


def _outside(cluster: Cluster, http: httpx2.Client) -> None:
    """What is not to be had through nginx, and what is at each broker."""
    cluster.say(f"/metrics through nginx: {http.get('/metrics').status_code}")
    for name in BROKERS:
        bearer = {"authorization": f"Bearer {cluster.metrics_token}"}
        answer = httpx2.get(cluster.url(name, "control") + "/metrics", headers=bearer, timeout=20).raise_for_status()
        cluster.say(f"/metrics of {name}: {sum(not line.startswith('#') for line in answer.text.splitlines())} samples")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> int:
    """Run it. Returns the exit code."""
    try:
        with running(_say) as cluster:
            asyncio.run(story(cluster))
            if "--keep" in sys.argv[1:]:
                _say(f"kept until Ctrl-C: {cluster.issuer}, certificate and logs in {cluster.place}")
                with suppress(KeyboardInterrupt):
                    signal.pause()
    except Missing as program:
        sys.stderr.write(f"{program} is not installed\n")
        return 1
    _say("stopped and removed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
