"""Taskpass: a just-in-time credential broker for non-human identities.

A workload proves what it is (`attest`), says which task it is on, and asks for one credential. `service` is the one
door: it authorises, decides by policy (`policies`), and commits the outcome to the `ledger` before an issuer
(`issuers`) mints anything. Whatever ends a credential is a position in that same ledger; `web.feed` carries it to the
verifiers (`sdk.verifier`) that downstream services run.

Start with `service/__init__.py`; `model.py` holds the nouns and `errors.py` every refusal. `app.py` puts it together.
"""
