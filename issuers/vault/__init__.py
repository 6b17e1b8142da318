"""Secrets from Vault or OpenBao, leased to one task.

`connect` names the server and how the broker logs in, `VaultIssuer` issues from it, `issuer_of` makes both of a
configuration. `setup` has the least that an operator must give the broker there.
"""

from issuers.vault.issuer import VaultIssuer
from issuers.vault.login import Login
from issuers.vault.options import issuer_of, vault_of
from issuers.vault.sessions import Vault, connect
from issuers.vault.settings import VaultSettings, settings_of
from issuers.vault.setup import Setup, policy_for

__all__ = [
    "Login",
    "Setup",
    "Vault",
    "VaultIssuer",
    "VaultSettings",
    "connect",
    "issuer_of",
    "policy_for",
    "settings_of",
    "vault_of",
]
