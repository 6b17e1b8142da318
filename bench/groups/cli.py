"""`taskpass token` from a cold process: interpreter, imports, one request, the token on standard output.

Beside: a bare start of the interpreter, for scale. On: everything, against a running broker. Files are in the page
cache, as for any command that was used before.
"""

import subprocess
import sys
from pathlib import Path
from statistics import median
from time import perf_counter

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from bench.run import Run
from bench.serving import serving
from bench.site import AUDIENCE, SCOPE, agent_name, signer_of


def measure(run: Run) -> None:
    """`cli_token_ms`."""
    site, agent = run.site(), agent_name(0)
    key = run.scratch / "agent.pem"
    pem = signer_of(agent)._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())  # noqa: SLF001
    key.write_bytes(pem)
    key.chmod(0o600)
    taskpass = str(Path(sys.executable).with_name("taskpass"))
    who = ["--url", site.issuer, "--key", str(key), "--client-id", agent]
    with serving(site, core=run.server_core):
        times, bare = [], []
        for _ in range(run.times(21, 7) + 1):
            bare.append(_ms([sys.executable, "-c", ""]))
            times.append(_ms([taskpass, *who, "token", AUDIENCE, "--scope", SCOPE]))
    run.book.figure("cli_token_ms", median(times[1:]), note=f"of which the bare interpreter {median(bare[1:]):.0f} ms")
    run.book.detail("cli", {"token_ms": times[1:], "interpreter_ms": bare[1:]})


def _ms(command: list[str]) -> float:
    start = perf_counter()
    ran = subprocess.run(command, capture_output=True, check=False)
    took = (perf_counter() - start) * 1000
    if ran.returncode:
        raise RuntimeError(f"{command[0]} exited with {ran.returncode}: {ran.stderr.decode()[-500:]}")
    return took
