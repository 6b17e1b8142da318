"""Who is calling? From a workload's token to the workload that it proves, by the trust rows of the registry.

    pool = AttesterPool(rows)
    workload = pool.attest(token, audiences={issuer_url}, now_ms=now)    never waits
    except KeysNeeded as needed: await pool.refresh(needed.source)       then once more
    nearest_registration(workload, identities)                           what to correct when nobody is registered

An issuer is a row (`trust`); a mechanism is code (`oidc`, `spiffe`, `key`), and says only what it adds to the checks
that every token must pass (`attester`, on `broker.jose`). Keys come from the row, a file or an allow-listed https host
(`jwks`, `fetch`).
"""

from broker.attest.errors import AttestationFailed, KeysNeeded
from broker.attest.mapping import nearest_registration
from broker.attest.pool import AttesterPool

__all__ = ["AttestationFailed", "AttesterPool", "KeysNeeded", "nearest_registration"]
