"""What `taskpass dev` runs: the broker in one process, on the sample configuration with keys in place of a platform."""

import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from broker.app import Role
from broker.cli.errors import USAGE, Failure
from broker.cli.init import write_skeleton
from broker.cli.secret_file import write_secret
from broker.config import Config, load_config
from broker.jose import public_jwk
from broker.log import configure_logging
from broker.processes import listen_on, serve_one
from broker.stores import create

AGENT, VERIFIER = "dispute-bot", "billing"

Tell = Callable[[str, Path, bool], None]


def play(*, host: str, port: int, directory: Path | None, tell: Tell) -> None:
    """Run until interrupted. `tell` gets the URL, the directory, and whether it stays, once the broker is ready."""
    import uvloop

    with _place(directory) as place, listen_on(f"{_bracketed(host)}:{port}") as listening:
        url = f"http://{_bracketed(host)}:{listening.getsockname()[1]}"
        config = _config(place, url)
        configure_logging("warning", "console")
        with suppress(KeyboardInterrupt):  # how it is meant to be stopped
            uvloop.run(
                serve_one(
                    config, role=Role.ALL, listening=listening, ready=lambda: tell(url, place, directory is not None)
                )
            )


@contextmanager
def _place(directory: Path | None) -> Iterator[Path]:
    """The directory to work in. A temporary one is gone afterwards, also after SIGTERM or a closed terminal."""
    if directory is not None:
        yield directory
        return

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):  # until uvicorn has its own handlers, and after
        signal.signal(number, stop)
    place = Path(tempfile.mkdtemp(prefix="taskpass-dev-"))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _config(place: Path, url: str) -> Config:
    """The configuration of a fresh or an earlier playground, all in one process."""
    file = place / "taskpass.toml"
    if not file.exists():
        write_skeleton(place, issuer=url, demo=True)
        _register_keys(place)
    config = load_config(file)
    if config.issuer != url:
        raise Failure(
            "usage",
            f"{place} was made for {config.issuer}.",
            exit_code=USAGE,
            next="Name its --host and --port, or another --dir.",
        )
    config = config.model_copy(update={"serve": config.serve.model_copy(update={"control_url": url})})
    if not config.ledger.path.exists():
        create(config)
    return config


def _register_keys(place: Path) -> None:
    """Keys in place of a platform's identities: one for the sample agent, one for the sample verifier."""
    rows = ["# Keys that `taskpass dev` made, in place of your platform's identities.", "trust:"]
    for name, file in ((AGENT, "agents.yaml"), (VERIFIER, "verifiers.yaml")):
        private = ec.generate_private_key(ec.SECP256R1())
        pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        write_secret(place / "keys" / f"{name}.pem", pem.decode())
        jwk = public_jwk(private.public_key(), alg="ES256")
        inline = ", ".join(f"{member}: {value}" for member, value in jwk.items())
        rows.append(f"  {name}: {{kind: key, subject: {name}, jwks: {{keys: [{{{inline}}}]}}}}")
        path = place / "registry" / file
        text = path.read_text()
        path.write_text(text.replace(f"{{trust: idp, subject: {name}}}", f"{{trust: {name}}}"))
    (place / "registry" / "dev.yaml").write_text("\n".join(rows) + "\n")
    _drop_platform(place / "registry" / "trust.yaml")


def _drop_platform(trust: Path) -> None:
    """Comment the sample identity provider out: it does not exist, and would be asked for its keys."""
    lines, skipping = [], False
    for line in trust.read_text().splitlines():
        if line.startswith("  idp:"):
            skipping = True
        elif skipping and line and not line.startswith("    "):
            skipping = False
        lines.append(f"#{line}" if line.startswith("trust:") or (skipping and line) else line)
    trust.write_text("\n".join(lines) + "\n")


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host
