"""What the configuration says of signing keys: what seals them, and where those of access tokens sign.

sealer_of(config)           seals new keys, and opens what any configured sealing key has sealed
keyring_of(config, ledger)  the signing keys of a ledger
reseal(config, ledger)      seals what is sealed otherwise with the sealing key that is configured now
"""

import os
from collections.abc import Callable

from broker.config import Config
from broker.errors import ConfigurationInvalid
from broker.files import secret_in
from broker.keys import Keyring
from broker.ledger import Ledger, Now, views
from broker.ledger.commands.admin import IN_TRANSIT, Resealed, ResealKeys
from broker.sealing import KeySealer, Sealer, Sealers, TransitSealer
from broker.transit import Transit

__all__ = ["keyring_of", "reseal", "sealer_of"]


def sealer_of(config: Config) -> Sealers:
    """Seals by what `keys.seal` names; opens with that, and with whatever else is configured. Asks no vault yet.

    Raises ConfigurationInvalid.
    """
    keys, first = config.keys, list[Sealer]()
    if keys.encryption_key is not None:
        first.append(KeySealer.from_text(keys.encryption_key.get_secret_value()))
    if keys.encryption_key_file is not None:
        first.append(KeySealer.from_file(keys.encryption_key_file))
    if config.transit.address is not None:
        vault = TransitSealer(transit_of(config), key=config.transit.key)
        first.insert(0 if keys.seal == "transit" else 1, vault)
    if keys.previous_encryption_key_file is not None:
        first.append(KeySealer.from_file(keys.previous_encryption_key_file))
    return Sealers(*first)


def transit_of(config: Config) -> Transit:
    """The configured transit engine. Raises ConfigurationInvalid when there is none, or no token for it."""
    section = config.transit
    if section.address is None:
        raise ConfigurationInvalid("There is no transit.address, which keys.seal or keys.sign needs.")
    file, fixed = section.token_file, section.token

    def token() -> str:
        if file is not None:  # whatever renews it writes it anew
            return secret_in(file, "transit.token_file")
        assert fixed is not None
        return fixed.get_secret_value()

    token()
    return Transit(
        address=section.address,
        token=token,
        mount=section.mount,
        namespace=section.namespace,
        ca_file=section.ca_file,
        timeout_s=section.timeout_s,
    )


def keyring_of(
    config: Config, ledger: Ledger, *, now: Now, observe: Callable[[float, bool], None] | None = None
) -> Keyring:
    """The signing keys of a ledger; for `observe` see there. Raises ConfigurationInvalid."""
    return Keyring(
        ledger=ledger,
        sealer=sealer_of(config),
        now=now,
        transit=transit_of(config) if config.transit.address is not None else None,
        makes_remote=config.keys.sign == "transit",
        observe=observe,
    )


def reseal(config: Config, ledger: Ledger) -> list[str]:
    """Seal every key that the configured sealing key did not seal with it; their kids. Brokers may go on meanwhile, if
    they can open both. Raises ConfigurationInvalid, Unavailable, LedgerUnavailable.
    """
    sealers = sealer_of(config)
    with ledger.read() as r:
        rows = [row for row in views.keys(r) if not row.sealed.startswith(IN_TRANSIT) and row.state != "killed"]
    changed = []
    for row in rows:
        try:
            sealers.first.open(row.purpose, row.kid, row.sealed)
        except ConfigurationInvalid:
            private = sealers.open(row.purpose, row.kid, row.sealed)
            changed.append(Resealed(row.kid, row.sealed, sealers.seal(row.purpose, row.kid, private)))
    if not changed:
        return []
    actor = f"uid {os.getuid()} of this machine"
    (outcome,) = ledger.commit([ResealKeys(changed, config.keys.seal, actor)])
    if isinstance(outcome, Exception):
        raise outcome
    return list(outcome)
