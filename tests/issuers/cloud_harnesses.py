"""GitHub and AWS, as far as they can be had on loopback: servers that speak their protocols, on a clock of a test."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from broker.sdk.testkit import FakeBroker
from issuers import Handle, Minted, Order
from issuers.aws_sts import AwsStsIssuer
from issuers.github_app import GitHubAppIssuer
from tests.issuers import harness
from tests.issuers.api_server import Fault, Reply
from tests.issuers.github_server import GitHubServer
from tests.issuers.harness import Harness, Use, new_order
from tests.issuers.sts_server import ROLE, StsServer

START_MS = 1_790_000_000_000


class Clock:
    """Milliseconds. Stands still unless it is moved."""

    ms = START_MS

    def __call__(self) -> int:
        return self.ms


class _Cloud(Harness):
    """A backend that lists nothing: what exists there is known by its holder alone."""

    lists = False
    ttl_s: int
    settings: Mapping[str, Any]

    def __init__(self) -> None:
        self.clock = Clock()

    def order(self, **changes: Any) -> Order:
        return new_order(now_s=self.clock() // 1000, ttl_s=self.ttl_s, settings=self.settings, **changes)

    def existing(self) -> set[str]:
        return set()

    def after(self, minted: Minted) -> None:
        self.clock.ms = (int(minted.handle["expires"]) + 120) * 1000


class GitHubHarness(_Cloud):
    """What was done at GitHub and not heard of is nobody's to end; `test_github_app` says what is said of it then."""

    fails = frozenset({harness.Fault.FAILED})
    ttl_s = 300
    settings = {"installation": 4242, "repositories": ["invoices"], "permissions": {"read": {"contents": "read"}}}  # noqa: RUF012

    def __init__(self, place: Path) -> None:
        super().__init__()
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (place / "app.pem").write_bytes(pem)
        self.server = GitHubServer(key=key.public_key(), now=self.clock)
        self.never_shown = (pem.decode(),)
        self.issuer = GitHubAppIssuer(
            app=self.server.app, private_key_file=place / "app.pem", now=self.clock, url=self.server.url
        )

    def use(self, values: Mapping[str, str]) -> Use:
        accept = {"Accept": "application/vnd.github+json", "User-Agent": "test"}
        headers = {"Authorization": f"Bearer {values['token']}", **accept}
        return Use(_accepted(Request(f"{self.server.url}/installation/repositories", headers=headers)))

    def name(self, handle: Handle) -> str:
        return handle["grant"]

    def fail_next(self, fault: harness.Fault) -> None:
        self.server.faults = [Fault("status", reply=Reply(429))]


class AwsHarness(_Cloud):
    fails = frozenset()
    ttl_s = 1_000
    settings = {"role_arn": ROLE, "statements": {"read": [{"Effect": "Allow", "Action": "s3:Get*", "Resource": "*"}]}}  # noqa: RUF012

    def __init__(self, provider: FakeBroker) -> None:
        super().__init__()
        self.server = StsServer(issuer=provider.issuer, now=self.clock)
        self.server.max_duration, self.server.trusts = 43_200, {"agent:invoice-agent"}

        def sign(_kid: str, typ: str, claims: Mapping[str, Any]) -> str:
            return provider.signer.sign(typ, dict(claims))

        self.issuer = AwsStsIssuer(iss=provider.issuer, sign=sign, now=self.clock, url=self.server.url)

    def use(self, values: Mapping[str, str]) -> Use:
        headers = {
            "Authorization": f"AWS4-HMAC-SHA256 Credential={values['access_key_id']}/20260921/aws-global/sts",
            "X-Amz-Security-Token": values["session_token"],
        }
        form = urlencode({"Action": "GetCallerIdentity", "Version": "2011-06-15"}).encode()
        return Use(_accepted(Request(self.server.url, form, headers)))

    def name(self, handle: Handle) -> str:
        return handle["session"]

    def fail_next(self, fault: harness.Fault) -> None:
        raise NotImplementedError


@contextmanager
def github_app(place: Path) -> Iterator[Harness]:
    made = GitHubHarness(place)
    with made.server:
        yield made


@contextmanager
def aws_sts(_: Path) -> Iterator[Harness]:
    provider = FakeBroker()
    with provider.serve():
        made = AwsHarness(provider)
        with made.server:
            yield made


def _accepted(request: Request) -> bool:
    try:
        with urlopen(request, timeout=10) as answer:
            return bool(answer.status == 200)
    except HTTPError:
        return False
