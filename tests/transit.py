"""A transit engine for tests: a small server that answers as Vault and OpenBao do, with real cryptography and faults on
request; and, where `bao` or VAULT_ADDR is there, the real one.
"""

import base64
import json
import os
import secrets
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from demo.ports import free_port

KEY = "taskpass"


class Engine:
    """The stand-in. `fault` is what it does instead of answering; `calls` what it was asked."""

    def __init__(self) -> None:
        self.token = f"s.{secrets.token_hex(12)}"
        self.fault = ""
        self.calls: list[str] = []
        self._seals = AESGCM(secrets.token_bytes(32))
        self._keys: dict[str, ec.EllipticCurvePrivateKey] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and JSON for one call."""
        _, _, mount, operation, name = path.split("/")
        self.calls.append(operation)
        if mount != "transit":
            return 404, {"errors": ["no handler for route"]}
        if operation == "encrypt":
            nonce = secrets.token_bytes(12)
            sealed = nonce + self._seals.encrypt(nonce, base64.b64decode(body["plaintext"]), name.encode())
            return 200, {"data": {"ciphertext": f"vault:v1:{base64.b64encode(sealed).decode()}", "key_version": 1}}
        if operation == "decrypt":
            try:
                raw = base64.b64decode(body["ciphertext"].removeprefix("vault:v1:"))
                plain = self._seals.decrypt(raw[:12], raw[12:], name.encode())
            except InvalidTag:
                return 400, {"errors": ["cipher: message authentication failed"]}
            return 200, {"data": {"plaintext": base64.b64encode(plain).decode()}}
        if operation == "sign":
            return self._sign(name, body)
        if body:
            assert body["type"] == "ecdsa-p256"
            self._keys.setdefault(name, ec.generate_private_key(ec.SECP256R1()))
            return 204, {}
        public = self._keys[name].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        return 200, {
            "data": {"type": "ecdsa-p256", "latest_version": 1, "keys": {"1": {"public_key": public.decode()}}}
        }

    def _sign(self, name: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        assert (body["marshaling_algorithm"], body["hash_algorithm"]) == ("jws", "sha2-256")
        results = []
        for each in body["batch_input"]:
            r, s = decode_dss_signature(
                self._keys[name].sign(base64.b64decode(each["input"]), ec.ECDSA(hashes.SHA256()))
            )
            if self.fault == "forge":
                s ^= 1
            raw = base64.urlsafe_b64encode(r.to_bytes(32) + s.to_bytes(32)).rstrip(b"=").decode()
            results.append({"signature": f"vault:v1:{raw}", "key_version": 1})
        if self.fault == "one fails":
            results[-1] = {"error": "no"}
        if self.fault == "too few":
            results.pop()
        return 200, {"data": {"batch_results": results}}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        engine = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _serve(self) -> None:
                sent = self.rfile.read(int(self.headers.get("content-length") or 0))
                status, answer = 403, {"errors": ["permission denied"]}
                if engine.fault == "silent":
                    time.sleep(1.5)
                    self.close_connection = True
                    return
                if engine.fault == "garbage":
                    status, answer = 200, {"data": ["no", "such", "thing"]}  # type: ignore[dict-item]
                elif engine.fault == "sealed":
                    status, answer = 503, {"errors": ["Vault is sealed"]}
                elif self.headers.get("X-Vault-Token") == engine.token:
                    status, answer = engine.answer(self.path, json.loads(sent) if sent else {})
                body = b"" if status == 204 else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self) -> None:
                self._serve()

            def do_GET(self) -> None:
                self._serve()

            def log_message(self, *_: Any) -> None:
                """Quietly."""

        return Handler


@contextmanager
def engine() -> Iterator[Engine]:
    """A stand-in, until the context ends."""
    made = Engine()
    try:
        yield made
    finally:
        made.close()


class Bao:
    """A real server in development mode, or the one that VAULT_ADDR and VAULT_TOKEN name."""

    def __init__(self, place: Path) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self.address, self.token = os.environ.get("VAULT_ADDR", ""), os.environ.get("VAULT_TOKEN", "root")
        if not self.address:
            port = free_port()
            self.address, self.token = f"http://127.0.0.1:{port}", "root"
            command = ["bao", "server", "-dev", "-dev-root-token-id=root", f"-dev-listen-address=127.0.0.1:{port}"]
            with (place / "bao.log").open("wb") as log:
                self._process = subprocess.Popen(
                    command, cwd=place, stdout=log, stderr=log, env={**os.environ, "HOME": str(place)}
                )
        deadline = time.monotonic() + 30
        while not self.version:
            assert time.monotonic() < deadline, "bao does not start"
            time.sleep(0.1)
        with suppress(urllib.error.HTTPError):  # it is mounted already
            self._ask("POST", "sys/mounts/transit", {"type": "transit"})
        self._ask("POST", f"transit/keys/{KEY}", {})

    @property
    def version(self) -> str:
        try:
            return str(self._ask("GET", "sys/health", None).get("version", ""))
        except OSError:
            return ""

    def _ask(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        request = urllib.request.Request(
            f"{self.address}/v1/{path}",
            None if body is None else json.dumps(body).encode(),
            {"X-Vault-Token": self.token},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=5) as response:
            return dict(json.loads(response.read() or b"{}"))

    def close(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)


def bao_or_skip(place: Path) -> Bao:
    """The real server, or a skipped test."""
    if "VAULT_ADDR" not in os.environ and shutil.which("bao") is None:
        pytest.skip("no OpenBao: neither VAULT_ADDR nor bao on the PATH")
    return Bao(place)
