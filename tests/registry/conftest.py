"""A sound registry, and a way to write it with one part of it changed."""

import textwrap
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from broker.jose import public_jwk
from broker.registry import Registry, load

JWK = public_jwk(ec.generate_private_key(ec.SECP256R1()).public_key())

SOUND = {
    "owners": """\
        owners:
          finance:
            name: Finance
            contact: finance@example.com
            backup: cfo@example.com
            escalation: on call
        """,
    "trust": """\
        trust:
          idp: {kind: oidc, issuer: "https://idp.example.com", jwks: {url: "https://idp.example.com/jwks"}}
          mesh: {kind: spiffe, trust_domain: example.org, jwks: {file: bundle.json}}
          hub: {kind: github, jwks: {url: "https://token.actions.githubusercontent.com/.well-known/jwks"}}
          signer: {kind: key, subject: nightly, jwks: {file: nightly.json}}
        """,
    "resources": """\
        resources:
          invoices:
            system: Archive
            audience: https://invoices.example.com
            owner: finance
            data_classes: [financial]
            leaves_boundary: false
            retention: 10 years
            actions:
              invoices:read: {access: read, description: Read one}
              credits:propose:
                access: write
                description: Propose a credit
                parameters:
                  invoice: {type: string, required: true, max_length: 10}
                  amount_cents: {type: integer, required: true, minimum: 1, maximum: 1000}
                  channel: {type: string, values: [mail, phone]}
                  urgent: {type: boolean}
        """,
    "agents": """\
        agents:
          bot:
            owner: finance
            purpose: Works disputes
            workflow: Reads and proposes
            identities: [{trust: idp, subject: bot}]
            boundary: {invoices: ["invoices:read"]}
            review: {reviewer: Ada, reviewed: 2026-01-01, expires: 2026-12-31}
        """,
    "verifiers": """\
        verifiers:
          billing:
            owner: finance
            identities: [{trust: idp, subject: billing}]
            audiences: [https://invoices.example.com]
        """,
    "operators": f"""\
        operators:
          ada:
            name: Ada
            keys: [{orjson.dumps(JWK).decode()}]
            rights: [kill, resume]
            owners: all
        """,
}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write the sound registry, one file a kind, with whole files replaced or added; returns its directory."""

    def write(**files: str | bytes) -> Path:
        directory = tmp_path / "registry"
        directory.mkdir(exist_ok=True)
        for name, content in {**SOUND, **files}.items():
            data = content if isinstance(content, bytes) else textwrap.dedent(content).encode()
            (directory / f"{name}.yaml").write_bytes(data)
        return directory

    return write


@pytest.fixture
def registry(write: Callable[..., Path]) -> Registry:
    return load(write())
