"""The transit engine of Vault or OpenBao: it encrypts, decrypts and signs with keys that never leave it.

Calls block for at most the configured time, so they are for worker threads. What the server said is for the log only.
"""

import base64
import binascii
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import hvac
import requests
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from hvac.exceptions import VaultError

from broker.errors import Unavailable
from broker.jose import JoseError, VerifyingKey, public_jwk

T = TypeVar("T")


class Transit:
    """One mount of the engine. `token` is asked before every call, so that one that was renewed is used at once.

    Every method raises Unavailable when the server does not do it.
    """

    def __init__(
        self,
        *,
        address: str,
        token: Callable[[], str],
        mount: str,
        namespace: str | None,
        ca_file: Path | None,
        timeout_s: float,
    ) -> None:
        session = requests.Session()
        session.trust_env = False  # neither proxies nor .netrc of whoever started the broker
        self._client = hvac.Client(
            url=address,
            token="none yet",  # noqa: S106  (without one hvac looks for the caller's own)
            verify=str(ca_file) if ca_file is not None else True,
            timeout=timeout_s,
            namespace=namespace,
            allow_redirects=False,
            session=session,
        )
        session.verify = str(ca_file) if ca_file is not None else True
        self._token = token
        self._mount = mount

    def encrypt(self, key: str, plaintext: bytes) -> str:
        """The engine's own form of ciphertext, with the version of the key in it."""
        data = self._call("encrypt_data", name=key, plaintext=_text(plaintext))
        return _member(data, "ciphertext", str)

    def decrypt(self, key: str, ciphertext: str) -> bytes:
        """What `encrypt` was given."""
        return _bytes(_member(self._call("decrypt_data", name=key, ciphertext=ciphertext), "plaintext", str))

    def make_signing_key(self, name: str) -> dict[str, str]:
        """Make a P-256 key that cannot be exported; its public JWK."""
        self._call("create_key", name=name, key_type="ecdsa-p256", exportable=False, allow_plaintext_backup=False)
        versions = _member(self._call("read_key", name=name), "keys", dict)
        try:
            key = load_pem_public_key(_member(_member(versions, "1", dict), "public_key", str).encode())
        except ValueError as error:
            raise _strange(repr(error)) from error
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
            raise _strange("no P-256 key")
        return public_jwk(key, alg="ES256")

    def sign(self, name: str, public: VerifyingKey, inputs: Sequence[bytes]) -> list[bytes | Unavailable]:
        """ES256 signatures (r and s, 64 bytes) of all inputs by one call; each is checked with the public key."""
        data = self._call(
            "sign_data",
            name=name,
            key_version=1,
            hash_algorithm="sha2-256",
            marshaling_algorithm="jws",
            batch_input=[{"input": _text(each)} for each in inputs],
        )
        results = _member(data, "batch_results", list)
        if len(results) != len(inputs):
            raise _strange(f"{len(results)} signatures for {len(inputs)} inputs")
        return [_checked(result, public, each) for result, each in zip(results, inputs, strict=True)]

    def _call(self, operation: str, **arguments: Any) -> dict[str, Any]:  # noqa: ANN401  (the engine's parameters)
        try:
            self._client.token = self._token()
            answer = getattr(self._client.secrets.transit, operation)(mount_point=self._mount, **arguments)
        except (VaultError, requests.RequestException, OSError, ValueError) as error:
            raise Unavailable(
                "The signing keys' vault does not answer.", internal=f"transit {operation}: {type(error).__name__}"
            ) from error
        if operation == "create_key":  # Vault answers with nothing, OpenBao with the key
            return {}
        return _member(answer, "data", dict)


def _checked(result: Any, public: VerifyingKey, signed: bytes) -> bytes | Unavailable:  # noqa: ANN401  (JSON)
    """A signature that holds, whatever made it."""
    try:
        encoded = _member(result, "signature", str).rsplit(":", 1)[-1]
        signature = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
        public.verify("ES256", signed, signature)
    except Unavailable as error:
        return error
    except (JoseError, binascii.Error) as error:
        return _strange(f"a signature that does not hold: {type(error).__name__}")
    return signature


def _member(data: Any, name: str, kind: type[T]) -> T:  # noqa: ANN401  (JSON)
    found = data.get(name) if isinstance(data, dict) else None
    if not isinstance(found, kind):
        raise _strange(f"no {name}")
    return found


def _strange(what: str) -> Unavailable:
    return Unavailable("The signing keys' vault does not answer as it should.", internal=f"transit: {what}")


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise _strange("not base64") from error
