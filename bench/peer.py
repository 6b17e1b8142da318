"""The peer: node oidc-provider, the nearest widely used server that does this job, with all that it has in its favour.

It keeps everything in memory, evaluates no policy, writes nothing durable and keeps no audit. It answers the same form
with the same kind of client assertion (ES256, single use) and mints the same kind of token (ES256, RFC 9068).
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from bench.beside import beside
from bench.site import AUDIENCE, SCOPE, agent_name, signer_of

_HERE = Path(__file__).parent / "peer"
_INSTALL_S = 180


class PeerMissing(Exception):
    """The peer cannot be run here; the message says why."""


def install(target: Path) -> Path:
    """The directory with the peer and its packages, installed from the npm registry unless that was done before."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise PeerMissing("node and npm are not installed")
    target.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "server.mjs"):
        shutil.copy(_HERE / name, target / name)
    if not (target / "node_modules" / "oidc-provider").is_dir():
        try:
            subprocess.run(
                [npm, "install", "--no-audit", "--no-fund", "--omit=dev"],
                cwd=target,
                check=True,
                capture_output=True,
                timeout=_INSTALL_S,
            )
        except (subprocess.SubprocessError, OSError) as error:
            raise PeerMissing(f"npm could not install oidc-provider ({type(error).__name__})") from error
    return target


@contextmanager
def peer(directory: Path, *, port: int, agents: int, core: int) -> Iterator[int]:
    """The peer on `port`, all of its threads on `core`, with the bench's agents as clients; its process id."""
    issuer = f"http://127.0.0.1:{port}"
    setup = directory / "setup.json"
    clients = [{"client_id": name, "jwks": {"keys": [_public(name)]}} for name in map(agent_name, range(agents))]
    setup.write_text(json.dumps({"clients": clients, "signing": _signing_key()}), encoding="utf-8")
    node = shutil.which("node")
    assert node is not None
    command = [node, "server.mjs", str(port), issuer, AUDIENCE, SCOPE, str(setup)]
    environment = {**os.environ, "NODE_ENV": "production"}
    unready = PeerMissing("oidc-provider did not start; see peer.log in bench/out/peer")
    with (
        (directory / "peer.log").open("wb") as log,
        beside(command, core=core, unready=unready, cwd=directory, env=environment, stderr=log) as pid,
    ):
        yield pid


def version(directory: Path) -> str:
    """What the figures were taken beside."""
    package = json.loads((directory / "node_modules" / "oidc-provider" / "package.json").read_text(encoding="utf-8"))
    node = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    return f"oidc-provider {package['version']} on node {node}"


def _public(name: str) -> dict[str, str]:
    return {**signer_of(name).jwk, "use": "sig", "alg": "ES256"}


def _signing_key() -> dict[str, object]:
    key: dict[str, object] = ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP256R1()), as_dict=True)
    return {**key, "use": "sig", "alg": "ES256", "kid": "peer"}


if __name__ == "__main__":
    sys.exit("run `python -m bench`")
