"""The topology of deploy/compose from processes of this machine: nginx with TLS in front of two brokers, on one
PostgreSQL and one Redis, all on loopback and in a temporary directory.
"""

import os
import re
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from tempfile import mkdtemp

import httpx2
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from broker.cli.init import write_skeleton
from broker.jose import Signer
from broker.sdk.identity import CallableIdentity
from broker.sdk.verifier import Verifier
from demo import postgres
from demo.ports import free_port

ROOT = Path(__file__).resolve().parent.parent
BROKERS = ("broker-a", "broker-b")
IDP = "https://idp.example.com"
AUDIENCE = "https://invoices.example.com"
WITHIN_S = 60
_GRACE_S = 15


class Missing(Exception):
    """A program that this needs is not installed."""


class Cluster:
    """The processes, their directory, and the keys of everybody."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.place = Path(mkdtemp(prefix="taskpass-local-"))
        self.place.chmod(0o755)  # PostgreSQL's account has to get to its part
        self._children: list[subprocess.Popen[bytes]] = []
        self.ports = {name: port for port, name in enumerate(_NAMES, free_port(in_a_row=len(_NAMES)))}
        self.issuer = f"https://127.0.0.1:{self.ports['nginx']}"
        self.idp = Signer(private_key=ec.generate_private_key(ec.SECP256R1()))
        self.metrics_token = secrets.token_hex(16)

    # --- Parts --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start everything, in the order in which each needs the others."""
        self._certificates()
        self._postgres()
        self._start(
            "redis", [program("redis-server"), "--port", str(self.ports["redis"]), "--bind", "127.0.0.1", "--save", ""]
        )
        self.wait("Redis", lambda: _listens(self.ports["redis"]))
        self._configuration()
        taskpass = [str(Path(sys.executable).with_name("taskpass"))]
        self._run([*taskpass, "db", "upgrade"], env=self._broker(BROKERS[0]))
        for name in BROKERS:
            self._start(name, [*taskpass, "serve"], env=self._broker(name))
        for name in BROKERS:
            for kind in ("tokens", "control"):
                self.wait(f"{kind} of {name}", partial(_ready, self.url(name, kind)))
        self._nginx()
        self.say(f"running: PostgreSQL, Redis, {', '.join(BROKERS)}, nginx at {self.issuer}")

    def url(self, broker: str, kind: str) -> str:
        """A broker by itself, past nginx: its `tokens` or its `control` process."""
        return f"http://127.0.0.1:{self.ports[f'{broker}-{kind}']}"

    def _postgres(self) -> None:
        binaries = postgres_binaries()
        account = postgres.account()
        place = self.place / "postgres"
        place.mkdir(mode=0o700)
        if account:
            os.chown(place, account["user"], account["group"])
        make = ["initdb", "-D", "data", "-U", "taskpass", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"]
        self._run([str(binaries / make[0]), *make[1:]], cwd=place, **account)
        port = str(self.ports["postgres"])
        options = [
            "-D",
            "data",
            "-p",
            port,
            "-c",
            "listen_addresses=127.0.0.1",
            "-c",
            f"unix_socket_directories={place}",
        ]
        self._start("postgres", [str(binaries / "postgres"), *options], cwd=place, **account)
        ready = [str(binaries / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", port]
        self.wait("PostgreSQL", lambda: subprocess.run(ready, check=False).returncode == 0)
        create = [str(binaries / "createdb"), "-h", "127.0.0.1", "-p", port, "-U", "taskpass", "taskpass"]
        self._run(create)

    def _configuration(self) -> None:
        jwks = {"keys": [{**self.idp.jwk, "use": "sig", "alg": "ES256"}]}
        write_skeleton(self.place / "config", issuer=self.issuer, idp_issuer=IDP, idp_jwks=jwks)
        config = self.place / "config" / "taskpass.toml"
        lines = [
            line for line in config.read_text().splitlines() if not line.startswith(('path = "data/', "control_url"))
        ]
        config.write_text("\n".join(lines) + "\n")
        for name in BROKERS:
            (self.place / name).mkdir(mode=0o700)
        pem = (self.place / "config" / "keys" / "operator.pem").read_bytes()
        key = load_pem_private_key(pem, None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        self.operator = Signer(private_key=key)

    def _broker(self, name: str) -> dict[str, str]:
        """The variables that compose.yaml sets, for this machine."""
        return {
            "TASKPASS_CONFIG": str(self.place / "config" / "taskpass.toml"),
            "TASKPASS_SERVE__LISTEN": f"127.0.0.1:{self.ports[f'{name}-tokens']}",
            "TASKPASS_SERVE__CONTROL_LISTEN": f"127.0.0.1:{self.ports[f'{name}-control']}",
            "TASKPASS_SERVE__TRUSTED_PROXIES": "127.0.0.1/32",
            "TASKPASS_SERVE__WORKERS": "1",
            "TASKPASS_LEDGER__URL": f"postgresql://taskpass@127.0.0.1:{self.ports['postgres']}/taskpass",
            "TASKPASS_LEDGER__STATE_PATH": str(self.place / name),
            "TASKPASS_SIGNALS__URL": f"redis://127.0.0.1:{self.ports['redis']}/0",
            "TASKPASS_METRICS__TOKEN": self.metrics_token,
        }

    def _nginx(self) -> None:
        """deploy/nginx/nginx.conf as it is, but for names, ports and paths."""
        text = nginx_configuration(
            {
                **{f"{name}:8700": f"127.0.0.1:{self.ports[f'{name}-tokens']}" for name in BROKERS},
                **{f"{name}:8701": f"127.0.0.1:{self.ports[f'{name}-control']}" for name in BROKERS},
                "listen 8443": f"listen 127.0.0.1:{self.ports['nginx']}",
                "/etc/nginx/tls/": f"{self.place}/",
                "/dev/stderr": f"{self.place}/nginx-error.log",
                "/tmp/": f"{self.place}/nginx/",  # noqa: S108  (what stands in the file)
            }
        )
        (self.place / "nginx").mkdir(mode=0o777)
        path = self.place / "nginx.conf"
        path.write_text(text)
        self._run([program("nginx"), "-t", "-q", "-c", str(path)])
        self._start("nginx", [program("nginx"), "-c", str(path), "-g", "daemon off;"])
        self.wait("nginx", lambda: _listens(self.ports["nginx"]))

    def _certificates(self) -> None:
        """A certificate for 127.0.0.1 that is its own authority."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "taskpass on this machine")])
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(key, hashes.SHA256())
        )
        (self.place / "tls.crt").write_bytes(certificate.public_bytes(Encoding.PEM))
        private = self.place / "tls.key"
        private.touch(mode=0o600)
        private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))

    # --- Processes ----------------------------------------------------------------------------------------------------

    def _run(self, words: list[str], *, env: Mapping[str, str] | None = None, **options: object) -> None:
        ran = subprocess.run(
            words,
            env={**_environment(), **(env or {})},
            cwd=options.pop("cwd", ROOT),  # type: ignore[arg-type]
            capture_output=True,
            timeout=WITHIN_S,
            check=False,
            **options,  # type: ignore[call-overload]
        )
        if ran.returncode != 0:
            raise RuntimeError(f"{words[0]} failed:\n{(ran.stdout + ran.stderr).decode()[-2000:]}")

    def _start(self, name: str, words: list[str], *, env: Mapping[str, str] | None = None, **options: object) -> None:
        with (self.place / f"{name}.log").open("wb") as log:
            child = subprocess.Popen(
                words,
                env={**_environment(), **(env or {})},
                cwd=options.pop("cwd", ROOT),  # type: ignore[arg-type]
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **options,  # type: ignore[call-overload]
            )
        self._children.append(child)

    def wait(self, what: str, there: Callable[[], bool]) -> None:
        """Until it is there. Raises RuntimeError, with the logs, when a process has died or it takes too long."""
        until = time.monotonic() + WITHIN_S
        while not there():
            if time.monotonic() > until or any(child.poll() is not None for child in self._children):
                logs = "\n".join(f"--- {p.name}\n{p.read_text()[-1500:]}" for p in sorted(self.place.glob("*.log")))
                raise RuntimeError(f"{what} did not come up\n{logs}")
            time.sleep(0.05)

    def stop(self) -> None:
        """End every process, whoever came last first, and remove the directory."""
        for child in reversed(self._children):
            # PostgreSQL waits for its clients on SIGTERM; they are told before it.
            child.send_signal(signal.SIGINT if child is self._children[0] else signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                child.wait(_GRACE_S)
            if child.poll() is None:
                child.kill()
                child.wait()
        shutil.rmtree(self.place, ignore_errors=True)

    # --- Who uses it --------------------------------------------------------------------------------------------------

    def client(self) -> httpx2.Client:
        """Requests through nginx, by its certificate."""
        context = ssl.create_default_context(cafile=str(self.place / "tls.crt"))
        return httpx2.Client(base_url=self.issuer, verify=context, timeout=20)

    def assertion(self, signer: Signer, typ: str, iss: str, subject: str) -> str:
        """A proof of identity, good for a minute and once."""
        now = int(time.time())
        claims = {"iss": iss, "sub": subject, "aud": self.issuer, "iat": now, "exp": now + 60}
        return signer.sign(typ, {**claims, "jti": secrets.token_hex(12)})

    def workload(self, subject: str) -> str:
        """A workload's."""
        return self.assertion(self.idp, "JWT", IDP, subject)

    def verifier(self, broker: str) -> Verifier:
        """A strict verifier that reaches one broker only, past nginx, for its stream."""
        transport = _To(self.url(broker, "control"), self.url(broker, "tokens"))
        return Verifier(
            issuer=self.issuer,
            audience=AUDIENCE,
            identity=CallableIdentity(lambda _: self.workload("billing")),
            http=lambda: httpx2.AsyncClient(transport=transport, timeout=20),
        )


class _To(httpx2.AsyncBaseTransport):
    """Sends what goes to the issuer to one broker."""

    def __init__(self, control: str, tokens: str) -> None:
        self._control, self._tokens = httpx2.URL(control), httpx2.URL(tokens)
        self._through = httpx2.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        to = self._control if request.url.path.startswith("/v1/revocations") else self._tokens
        request.url = request.url.copy_with(scheme="http", host=to.host, port=to.port)
        return await self._through.handle_async_request(request)

    async def aclose(self) -> None:
        await self._through.aclose()


# --- What is on this machine ------------------------------------------------------------------------------------------

_NAMES = ("nginx", "postgres", "redis", *(f"{name}-{kind}" for name in BROKERS for kind in ("tokens", "control")))


def nginx_configuration(here: Mapping[str, str]) -> str:
    """deploy/nginx/nginx.conf with its names, ports and paths replaced. Raises KeyError for one that is not in it."""
    text = (ROOT / "deploy" / "nginx" / "nginx.conf").read_text()
    missing = [there for there in here if there not in text]
    if missing:
        raise KeyError(*missing)
    return re.sub("|".join(map(re.escape, here)), lambda found: here[found[0]], text)


def program(name: str) -> str:
    """Where a program is. Raises Missing."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None:
        raise Missing(name)
    return found


def postgres_binaries() -> Path:
    """Where PostgreSQL's programs are. Raises Missing."""
    folder = postgres.binaries("pg_isready", "createdb")
    if folder is None:
        raise Missing("postgres")
    return folder


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TASKPASS_", "PG"))}
    return {**kept, "PYTHONPATH": str(ROOT)}


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _ready(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/readyz", timeout=5).status_code == 200
    except httpx2.TransportError:
        return False


@contextmanager
def running(say: Callable[[str], None]) -> Iterator[Cluster]:
    """The cluster, until the block ends."""
    cluster = Cluster(say)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
