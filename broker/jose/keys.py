"""Public keys from JWKs, strictly: only what can safely verify, each bound to its algorithm (RFC 7517, 8725).

A key set is refused whole when it shows that its publisher cannot be trusted with keys (a symmetric or private key, a
weak modulus, two keys under one `kid`). Sound keys that serve another purpose are skipped.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import orjson
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from broker.jose import algorithms, weak
from broker.jose.encoding import b64decode, b64encode, load_object, printable
from broker.jose.errors import KeyNotUsable, KeyRefused, Malformed, UnknownKey
from broker.jose.parse import MAX_KID_LENGTH

MAX_KEYS = 100
MAX_JWKS_BYTES = 262_144

Use = Literal["sig", "jwt-svid"]

_REQUIRED = {"EC": ("crv", "x", "y"), "RSA": ("n", "e"), "OKP": ("crv", "x")}
_PRIVATE = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})
_CURVES: dict[str, tuple[type[ec.EllipticCurve], int]] = {
    "P-256": (ec.SECP256R1, 32),
    "P-384": (ec.SECP384R1, 48),
    "P-521": (ec.SECP521R1, 66),
}
_MIN_RSA_BITS, _MAX_RSA_BITS = 2048, 8192
_MIN_RSA_E, _MAX_RSA_E = 65_537, 2**32


@dataclass(frozen=True, slots=True)
class VerifyingKey:
    """A public key and the algorithms it may be used with: one, or for an RSA key without `alg` its row's list."""

    kid: str
    algs: frozenset[str]
    public: algorithms.PublicKey
    jwk: Mapping[str, str]  # canonical members only

    def verify(self, alg: str, signing_input: bytes, signature: bytes) -> None:
        """Return if `signature` is good; raise HeaderRefused for another algorithm, BadSignature otherwise."""
        if alg not in self.algs:
            raise algorithms.refuse_alg(alg, self.algs)
        algorithms.verify(alg, self.public, signing_input, signature)


@dataclass(frozen=True, slots=True)
class KeySet:
    """The usable keys of one issuer, by `kid`. May be empty: then nothing verifies."""

    keys: Mapping[str, VerifyingKey]

    def find(self, kid: str | None, alg: str) -> VerifyingKey:
        """The key for a header. Without a `kid` there must be exactly one key for `alg`. Raises UnknownKey."""
        if kid is not None:
            key = self.keys.get(kid)
            if key is None:
                raise UnknownKey(f"The issuer has no key with kid {kid[:80]!r}.")
            return key
        candidates = [key for key in self.keys.values() if alg in key.algs]
        if len(candidates) != 1:
            raise UnknownKey(
                f"The token names no key (`kid`), and the issuer has {len(candidates)} that fit.", reason="kid_missing"
            )
        return candidates[0]


def thumbprint(jwk: Mapping[str, Any]) -> str:
    """The RFC 7638 thumbprint (SHA-256, base64url) of a public JWK; KeyRefused if members are missing."""
    kty = jwk.get("kty")
    if kty not in _REQUIRED or not all(isinstance(jwk.get(name), str) for name in _REQUIRED[kty]):
        raise KeyRefused("The key has no kty, or lacks members that its kty needs.", reason="key_form")
    canonical = {name: jwk[name] for name in (*_REQUIRED[kty], "kty")}
    return b64encode(hashlib.sha256(orjson.dumps(canonical, option=orjson.OPT_SORT_KEYS)).digest()).decode()


def load_jwk(jwk: Mapping[str, Any], *, algs: Collection[str] = algorithms.ALL, use: Use = "sig") -> VerifyingKey:
    """One public key, fully checked. Without a `kid` it goes by its thumbprint.

    `algs` are the algorithms that the key's issuer may use. `use="jwt-svid"` is the SPIFFE rule: that value must be
    there, and keys with another or none are not for JWTs. Raises KeyNotUsable or KeyRefused.
    """
    _refuse_secrets(jwk)
    kty, kid, alg = jwk.get("kty"), jwk.get("kid"), jwk.get("alg")
    if kid is not None and not printable(kid, limit=MAX_KID_LENGTH):
        raise KeyRefused("A key's `kid` is not a short printable string.", reason="key_kid")
    _check_purpose(jwk, use)
    public: algorithms.PublicKey
    if kty == "EC":
        public, fitting = _load_ec(jwk)
    elif kty == "RSA":
        public, fitting = _load_rsa(jwk)
    elif kty == "OKP":
        public, fitting = _load_okp(jwk)
    else:
        raise KeyNotUsable("A key's `kty` is not EC, RSA or OKP.", reason="key_kty")
    if alg is not None:
        if type(alg) is not str or (alg not in fitting and alg in algorithms.ALL):
            raise KeyRefused("A key's `alg` does not fit its type or curve.", reason="key_alg")
        fitting = algorithms.same_as(alg)
    usable = fitting & frozenset(algs)
    if not usable:
        raise KeyNotUsable("A key is for an algorithm that this issuer may not use.", reason="key_alg")
    canonical = {name: str(jwk[name]) for name in ("kty", *_REQUIRED[kty])}
    return VerifyingKey(kid=kid or thumbprint(canonical), algs=usable, public=public, jwk=canonical)


def load_jwks(
    document: bytes | Mapping[str, Any], *, algs: Collection[str] = algorithms.ALL, use: Use = "sig"
) -> KeySet:
    """A key set, from its bytes (at most 256 KiB) or parsed. Raises KeyRefused when it must not be trusted at all."""
    if isinstance(document, bytes):
        document = _parse_jwks(document)
    entries = document.get("keys")
    if not isinstance(entries, Sequence) or isinstance(entries, str) or len(entries) > MAX_KEYS:
        raise KeyRefused(f"A JWKS is an object with a list of at most {MAX_KEYS} `keys`.", reason="jwks_form")
    keys: dict[str, VerifyingKey] = {}
    seen: set[str] = set()
    for entry in entries:
        if not isinstance(entry, Mapping):
            raise KeyRefused("A JWKS has an entry that is not an object.", reason="jwks_form")
        kid = entry.get("kid")
        if isinstance(kid, str):
            if kid in seen:
                raise KeyRefused(f"A JWKS has two keys with kid {kid[:80]!r}.", reason="duplicate_kid")
            seen.add(kid)
        try:
            key = load_jwk(entry, algs=algs, use=use)
        except KeyNotUsable:
            continue
        if key.kid in keys:
            raise KeyRefused(f"A JWKS has two keys that go by {key.kid[:80]!r}.", reason="duplicate_kid")
        keys[key.kid] = key
    return KeySet(keys)


def public_jwk(public: algorithms.PublicKey, *, alg: str | None = None, kid: str | None = None) -> dict[str, str]:
    """The JWK to publish for a key of ours: `use`, `alg` and a `kid` (by default the thumbprint) always present.

    `alg` is by default the one of the curve, RS256 for RSA, and Ed25519 by its own name (RFC 9864).
    """
    jwk: dict[str, str]
    if isinstance(public, ec.EllipticCurvePublicKey):
        numbers = public.public_numbers()
        crv, size = next((crv, size) for crv, (curve, size) in _CURVES.items() if isinstance(public.curve, curve))
        jwk = {"kty": "EC", "crv": crv, "x": _uint(numbers.x, size), "y": _uint(numbers.y, size)}
        usual = min(algorithms.of_curve(crv))
    elif isinstance(public, rsa.RSAPublicKey):
        modulus = public.public_numbers()
        jwk = {"kty": "RSA", "n": _uint(modulus.n), "e": _uint(modulus.e)}
        usual = "RS256"
    else:
        jwk = {"kty": "OKP", "crv": "Ed25519", "x": b64encode(public.public_bytes_raw()).decode()}
        usual = "Ed25519"
    return {**jwk, "kid": kid or thumbprint(jwk), "use": "sig", "alg": alg or usual}


def _parse_jwks(raw: bytes) -> dict[str, Any]:
    if len(raw) > MAX_JWKS_BYTES:
        raise KeyRefused("A JWKS is larger than 256 KiB.", reason="jwks_size")
    try:
        return load_object(raw, what="JWKS")
    except Malformed as error:
        raise KeyRefused(error.sentence, reason="jwks_form") from None


def _refuse_secrets(jwk: Mapping[str, Any]) -> None:
    if jwk.get("kty") == "oct" or "k" in jwk:
        raise KeyRefused("A symmetric key among public keys: a shared secret would verify.", reason="symmetric_key")
    if not _PRIVATE.isdisjoint(jwk):
        raise KeyRefused("A private key among public keys: whoever reads the set can sign.", reason="private_key")


def _check_purpose(jwk: Mapping[str, Any], use: Use) -> None:
    stated = jwk.get("use")
    if stated != use and (stated is not None or use == "jwt-svid"):
        raise KeyNotUsable(f"A key's `use` is not {use!r}.", reason="key_use")
    operations = jwk.get("key_ops")
    if operations is None:
        return
    if not isinstance(operations, list) or not all(isinstance(item, str) for item in operations):
        raise KeyRefused("A key's `key_ops` is not a list of strings.", reason="key_form")
    if "verify" not in operations:
        raise KeyNotUsable("A key's `key_ops` do not include verify.", reason="key_use")


def _load_ec(jwk: Mapping[str, Any]) -> tuple[ec.EllipticCurvePublicKey, frozenset[str]]:
    crv = jwk.get("crv")
    if type(crv) is not str or crv not in _CURVES:
        raise KeyNotUsable("A key's curve is not P-256, P-384 or P-521.", reason="key_curve")
    curve, size = _CURVES[crv]
    x, y = _octets(jwk, "x", size), _octets(jwk, "y", size)
    try:
        public = ec.EllipticCurvePublicNumbers(int.from_bytes(x), int.from_bytes(y), curve()).public_key()
    except ValueError:
        raise KeyRefused("A key's point is not on its curve.", reason="key_point") from None
    return public, algorithms.of_curve(crv)


def _load_rsa(jwk: Mapping[str, Any]) -> tuple[rsa.RSAPublicKey, frozenset[str]]:
    n, e = (int.from_bytes(_octets(jwk, name)) for name in ("n", "e"))
    if not _MIN_RSA_BITS <= n.bit_length() <= _MAX_RSA_BITS or n % 2 == 0:
        raise KeyRefused(
            f"An RSA key has a modulus of {n.bit_length()} bits: 2048 to 8192 are used.", reason="rsa_size"
        )
    if not _MIN_RSA_E <= e <= _MAX_RSA_E or e % 2 == 0:
        raise KeyRefused("An RSA key's exponent is below 65537, even, or absurdly large.", reason="rsa_exponent")
    if weak.is_roca(n):
        raise KeyRefused("An RSA key has the fingerprint of ROCA (CVE-2017-15361): it can be factored.", reason="roca")
    try:
        return rsa.RSAPublicNumbers(e, n).public_key(), algorithms.RSA
    except ValueError:
        raise KeyRefused("An RSA key's numbers are not valid.", reason="key_form") from None


def _load_okp(jwk: Mapping[str, Any]) -> tuple[ed25519.Ed25519PublicKey, frozenset[str]]:
    if jwk.get("crv") != "Ed25519":
        raise KeyNotUsable("An OKP key's curve is not Ed25519.", reason="key_curve")
    raw = _octets(jwk, "x", 32)
    if not weak.is_sound_ed25519(raw):
        raise KeyRefused("An Ed25519 key's point is not on the curve, or has a small order.", reason="key_point")
    return ed25519.Ed25519PublicKey.from_public_bytes(raw), algorithms.ED25519


def _octets(jwk: Mapping[str, Any], name: str, size: int | None = None) -> bytes:
    text = jwk.get(name)
    if type(text) is not str or not text.isascii() or len(text) > 2 * _MAX_RSA_BITS // 8:
        raise KeyRefused(f"A key's `{name}` is missing or not base64url.", reason="key_form")
    try:
        raw = b64decode(text.encode())
    except Malformed:
        raise KeyRefused(f"A key's `{name}` is not canonical base64url.", reason="key_form") from None
    if len(raw) != size if size else (not raw or raw[0] == 0):
        raise KeyRefused(f"A key's `{name}` has the wrong length or leading zeros.", reason="key_form")
    return raw


def _uint(value: int, size: int | None = None) -> str:
    return b64encode(value.to_bytes(size or (value.bit_length() + 7) // 8)).decode()
