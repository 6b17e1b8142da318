"""The demonstration: `make demo`. An agent that works on invoice disputes is stopped, and the stop is proven.

Four processes on loopback: an identity provider, the broker (`taskpass serve`), a downstream service, and this script,
which types what a user would type and checks every answer. It exits with 1, naming the step, when reality differs.
"""

import json
import signal
import sys
import tempfile
import time
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from broker.jose import public_jwk
from demo.database import Database, tell
from demo.ports import free_port
from demo.stage import ROOT, Stage, StepFailed, Watch, request

INVOICES, CREDITS, PAYMENTS = (f"https://{name}.example.com" for name in ("invoices", "credits", "payments"))

TRUST = """\
trust:
  idp:
    kind: oidc
    issuer: {idp}
    jwks: {{url: "{idp}/jwks.json", ca_file: {ca}, allow_private: true}}
  billing-key:
    kind: key
    subject: billing
    jwks: {{file: billing.jwks.json}}
"""


def main() -> int:
    """Tell the story. Returns the exit code."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _: sys.exit(128 + received))
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="taskpass-demo-") as directory:
        stage = Stage(Path(directory))
        database = None
        try:
            database = _set_up(stage)
            service = (stage.directory / "service.url").read_text()
            _tokens_and_outcomes(stage, service)
            _stop_and_resume(stage, service)
            tell(stage, database)
            _evidence(stage)
        except StepFailed as failed:
            stage.say(f"\nFAILED: {failed}")
            return 1
        except KeyboardInterrupt:
            stage.say("\nInterrupted.")
            return 130
        finally:
            stage.stop()
            if database is not None:
                database.server.close()
        stage.say(f"\nDone in {time.monotonic() - began:.0f} s. Nothing is left running, and nothing on disk.")
    return 0


# --- Setting up -------------------------------------------------------------------------------------------------------


def _set_up(stage: Stage) -> Database | None:
    stage.heading("An identity provider in its own process signs what a workload is, and publishes its keys.")
    here = stage.directory
    stage.start("idp", sys.executable, "-m", "demo.idp", str(here))
    stage.wait_for("the identity provider", lambda: (here / "url").exists() and (here / "url").read_text() != "")
    idp = (here / "url").read_text()
    stage.say(f"identity provider at {idp}")

    stage.heading("A new broker: configuration, registry, policies, keys and ledger; then this demo's own trust.")
    issuer = f"http://127.0.0.1:{free_port(in_a_row=2)}"
    stage.run(f"taskpass init broker --issuer {issuer} -o name")
    _trust_the_demo(stage, idp)
    database = Database.start(here / "broker")
    if database is not None:
        stage.say(
            "edited broker/taskpass.toml, registry and policies: a PostgreSQL server, and what the agent may read"
        )
    stage.run("taskpass registry check broker/registry")
    stage.run("taskpass policy test broker/policies --registry broker/registry")
    stage.run("taskpass policy matrix broker/policies --registry broker/registry")

    stage.heading("The broker, and a downstream service that follows its revocation feed, each in its own process.")
    stage.environment["TASKPASS_LOG__LEVEL"] = "warning"
    stage.say("$ taskpass serve --config broker/taskpass.toml &")
    stage.start("broker", "taskpass", "serve", "--config", "broker/taskpass.toml")
    stage.wait_for("the broker", lambda: request("GET", f"{issuer}/readyz").code == 200)
    stage.say(f"broker ready at {issuer}")
    url_file = here / "service.url"
    stage.start("service", sys.executable, "-m", "demo.service", issuer, "billing.pem", str(url_file))
    stage.wait_for(
        "the service", lambda: url_file.exists() and request("GET", f"{url_file.read_text()}/readyz").code == 200
    )
    stage.say(f"service ready at {url_file.read_text()}, connected to the feed")
    stage.heading("The agent dispute-bot: what its platform gives it, and who it is to the broker.")
    stage.environment |= {"DEMO_IDP": idp, "DEMO_CA": str(here / "ca.pem")}
    del stage.environment["TASKPASS_LOG__LEVEL"]
    stage.export(
        TASKPASS_URL=issuer, TASKPASS_TOKEN_COMMAND=f"python {ROOT / 'demo' / 'identity.py'} dispute-bot {{audience}}"
    )
    return database


def _trust_the_demo(stage: Stage, idp: str) -> None:
    """What an operator would edit: who vouches for workloads, and the service's registered key."""
    key = ec.generate_private_key(ec.SECP256R1())
    pem = stage.directory / "billing.pem"
    pem.touch(mode=0o600)
    pem.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    registry = stage.directory / "broker" / "registry"
    jwks = {"keys": [public_jwk(key.public_key(), alg="ES256")]}
    (registry / "billing.jwks.json").write_text(json.dumps(jwks))
    (registry / "trust.yaml").write_text(TRUST.format(idp=idp, ca=stage.directory / "ca.pem"))
    verifiers = registry / "verifiers.yaml"
    verifiers.write_text(verifiers.read_text().replace("{trust: idp, subject: billing}", "{trust: billing-key}"))
    stage.say("edited broker/registry/trust.yaml: the demo's identity provider, and the service's registered key")


# --- The agent at work ------------------------------------------------------------------------------------------------


def _tokens_and_outcomes(stage: Stage, service: str) -> None:
    seen = stage.run("taskpass whoami")
    stage.expect("agent dispute-bot" in seen.text, "whoami should say that this is dispute-bot")

    stage.heading("A task, and a credential for it: automatic, because a policy permits it.")
    opened = stage.run(
        "taskpass task open --purpose 'Answer dispute 4711' --trigger webhook --trigger-ref 4711 -o name",
        shown="TASK=$(taskpass task open --purpose 'Answer dispute 4711' --trigger webhook --trigger-ref 4711 -o name)",
    )
    stage.environment["TASK"] = task = opened.text.strip()
    granted = stage.run(
        f"taskpass token {INVOICES} --scope invoices:read --task {task} -o json",
        shown=f"taskpass token {INVOICES} --scope invoices:read --task $TASK -o json",
    ).json()
    stage.environment["FIRST"], stage.environment["DECISION"] = (
        str(granted["access_token"]),
        str(granted["decision_id"]),
    )
    read = stage.call("GET", f"{service}/invoices/INV-1001", str(granted["access_token"]))
    stage.expect(read.code == 200, "the service should accept the token")

    small = "--param invoice=INV-1001 --param amount_cents=4000"
    proposing = stage.run(f"taskpass token {CREDITS} --scope credits:propose {small} -o json").json()
    token = str(proposing["access_token"])
    proposed = stage.call("POST", f"{service}/credits", token, {"invoice": "INV-1001", "amount_cents": 4000})
    stage.expect(proposed.code == 201, "the service should accept the credit that was decided on")
    raised = stage.call("POST", f"{service}/credits", token, {"invoice": "INV-1001", "amount_cents": 400000})
    stage.expect(raised.code == 403, "the service should refuse any other credit")

    stage.heading("A larger credit needs a person: exit code 5, and a pending approval. Deciding on it comes later.")
    large = "--param invoice=INV-1002 --param amount_cents=12000"
    pending = stage.run(f"taskpass token {CREDITS} --scope credits:propose {large}", code=5)
    stage.expect("credit-over-limit" in pending.text and "apr_" in pending.text, "the answer should name gate and id")
    stage.run("taskpass approvals ls")

    stage.heading("Moving money is never an agent's to do: exit code 3, whoever approves.")
    never = stage.run(f"taskpass token {PAYMENTS} --scope payments:transfer --param amount_cents=100", code=3)
    stage.expect("no-agent-moves-money" in never.text, "the answer should name the policy that says never")

    stage.heading(
        "A second task, as a command that gets its credential from the environment. It ends with the command."
    )
    script = ROOT / "demo" / "read_invoice.py"
    ran = stage.run(
        f"taskpass run --resource {INVOICES} --scope invoices:read --purpose 'Answer dispute 4712' -- "
        f"python {script} {service} INV-1002"
    )
    stage.expect("Grace H." in ran.text, "the command should have read the invoice")
    stage.run("taskpass task ls")


# --- The kill ---------------------------------------------------------------------------------------------------------


def _stop_and_resume(stage: Stage, service: str) -> None:
    stage.heading("An operator logs in, looks at what would end, and pauses the agent.")
    stage.run("taskpass login operator --key broker/keys/operator.pem")
    stage.run("taskpass pause dispute-bot --dry-run")
    url, token = f"{service}/invoices/INV-1001", stage.environment["FIRST"]
    with Watch(url, token).running() as watch:
        stage.wait_for("the service accepting the token", lambda: watch.accepted > 0)
        receipt = stage.run("taskpass pause dispute-bot --reason 'credits to unknown customers'")
    stage.expect("1 of 1 reported applied" in receipt.text, "the verifier should have reported the kill applied")
    kill_id = receipt.text.split(":", 1)[0]
    stage.environment["KILL"] = kill_id
    full = stage.run(f"taskpass kills show {kill_id} -o json", quiet=True).json()
    _measured(stage, full, watch)

    stage.heading("The same token, a moment later; and a new request.")
    refused = stage.call("GET", url, token)
    stage.expect(refused.code == 401, "the service should refuse the killed token")
    held = stage.run(f"taskpass token {INVOICES} --scope invoices:read", code=1)
    stage.expect("hold" in held.text, "the broker should say that the agent is on hold")

    stage.heading("Resume: nothing revives, the agent asks anew.")
    stage.run("taskpass resume dispute-bot --reason 'prompt fixed and reviewed'")
    fresh = stage.run(f"taskpass token {INVOICES} --scope invoices:read -o json").json()
    accepted = stage.call("GET", url, str(fresh["access_token"]))
    stage.expect(accepted.code == 200, "the service should accept a fresh token")
    stage.say("and with the old one:")
    stage.expect(stage.call("GET", url, token).code == 401, "the killed token should stay dead")


def _measured(stage: Stage, receipt: dict[str, object], watch: Watch) -> None:
    """From the kill's commit to the acknowledgement on record, and to the first refusal that a client saw."""
    at, verifiers = receipt["at"], receipt["verifiers"]
    assert isinstance(at, int)
    assert isinstance(verifiers, dict)
    stage.expect(watch.refused_at is not None, "the service should have refused the token while it was being watched")
    assert watch.refused_at is not None
    acknowledged, first = verifiers["slowest_ms"], watch.refused_at - at
    stage.say(
        f"measured: verifier's acknowledgement {acknowledged} ms after the commit; first refusal seen by a client "
        f"{first} ms after it ({watch.accepted} requests accepted before)"
    )
    stage.expect(first <= 1000, "the first refusal should come within one second of the commit")


# --- The evidence -----------------------------------------------------------------------------------------------------


def _evidence(stage: Stage) -> None:
    stage.heading("Why was that token issued, and what became of it?")
    decision, task = stage.environment["DECISION"], stage.environment["TASK"]
    explained = stage.run(f"taskpass explain {decision}")
    stage.expect("dispute-bot-reads-invoices" in explained.text, "explain should name the policy")
    stage.expect(f"revoked by {stage.environment['KILL']}" in explained.text, "explain should name the kill")
    told = stage.run(f"taskpass task receipt {task}", shown="taskpass task receipt $TASK")
    stage.expect("killed" in told.text, "the receipt should say that the task was killed")

    stage.heading("The ledger: a checkpoint to keep, a proof of that one decision, and an audit of the whole file.")
    note = stage.run("taskpass ledger checkpoint", shown="taskpass ledger checkpoint | tee kept.note")
    (stage.directory / "kept.note").write_text(note.text)
    proven = stage.run(f"taskpass ledger proof {decision.rpartition('_')[2]}")
    stage.expect("Verified" in proven.text, "the inclusion proof should hold")
    audited = stage.run("taskpass ledger verify broker/data/ledger.db --checkpoint kept.note")
    stage.expect("sound" in audited.text and "1 kept" in audited.text, "the ledger should be sound")


if __name__ == "__main__":
    raise SystemExit(main())
