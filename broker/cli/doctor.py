"""`taskpass doctor` and `taskpass validate`: everything that can be looked at from here, or in the files alone, each
with what is wrong and what to do.
"""

import stat
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from broker.cli.context import Context, configuration_file
from broker.cli.errors import USAGE, Failure
from broker.cli.findings import Finding, tell
from broker.cli.issuer_checks import issuers_ready, issuers_sound
from broker.cli.ledger_findings import of_ledger
from broker.cli.options import command, config_option
from broker.sdk.protocol import Request

if TYPE_CHECKING:
    from broker.config import Config


@command(short_help="Find out what is wrong, and what to do about it.")
@config_option
def doctor(config_path: Path | None) -> int:
    """Look at the configuration, registry, policies, keys and ledger here, at the backends that issuers name, and at
    the broker and your identity there.

    Exit code 1 when something is wrong.
    """
    return tell(_look(config_path or configuration_file()))


@command(short_help="Check every file of a broker, and ask nobody.")
@config_option
def validate(config_path: Path | None) -> int:
    """Check the configuration, registry, policies with their cases, and the settings of issuers and their resources, as
    a broker reads them. For a pipeline: nothing is contacted, written, or needed but the files.

    Exit code 1 when something is wrong.
    """
    return tell(_checked(config_path or configuration_file()))


def _checked(path: Path) -> Iterator[Finding]:
    config = yield from _configuration(path)
    if config is None:
        raise Failure("usage", f"There is no {path} to check.", exit_code=USAGE, next="Give --config FILE.")
    yield from _files(config)


def _look(path: Path) -> Iterator[Finding]:
    config = yield from _configuration(path)
    if config is not None:
        yield from _files(config)
        yield from issuers_ready(config)
        yield from _keys(config)
        yield from of_ledger(config)
        yield from _secrets(config)
    yield from _broker()
    yield from _identity()


def _files(config: "Config") -> Iterator[Finding]:
    yield from _registry(config)
    yield from _policies(config)
    yield from issuers_sound(config)


def _configuration(path: Path) -> "Generator[Finding, None, Config | None]":
    from broker.config import load_config
    from broker.errors import ConfigurationInvalid

    if not path.exists():
        yield Finding(
            "configuration",
            "skipped",
            f"there is no {path} here",
            "On the broker's machine: taskpass init, or --config FILE.",
        )
        return None
    try:
        config = load_config(path)
    except ConfigurationInvalid as error:
        yield Finding("configuration", "wrong", str(error), f"Correct {path}.")
        return None
    yield Finding("configuration", "ok", f"{path}, issuer {config.issuer}")
    return config


def _registry(config: "Config") -> Iterator[Finding]:
    import time

    from broker.cli.offline import load_registry
    from broker.errors import ConfigurationInvalid

    try:
        loaded = load_registry(config.registry.path)
    except ConfigurationInvalid as error:
        yield Finding("registry", "wrong", str(error), "Correct these files, then: taskpass reload")
        return
    blocked = [str(problem) for problem in loaded.problems(int(time.time() * 1000))]
    yield Finding(
        "registry",
        "ok",
        f"{len(loaded.agents)} agents, {len(loaded.resources)} resources, {len(loaded.trust)} trust rows",
    )
    for problem in blocked:
        yield Finding("agent blocked", "wrong", problem, "This agent gets nothing until that is mended.")
    if not loaded.operators:
        yield Finding(
            "operators", "warning", "nobody is registered: nobody can stop anything", "Add one to operators.yaml."
        )
    elif not any(operator.break_glass for operator in loaded.operators.values()):
        yield Finding(
            "operators", "warning", "there is no break-glass key", "Add one to operators.yaml, for the worst day."
        )


def _policies(config: "Config") -> Iterator[Finding]:
    from broker.cli.offline import load_engine
    from broker.errors import ConfigurationInvalid
    from policies import PolicyInvalid
    from policies.cases import read_cases, run_cases

    try:
        engine = load_engine(config.policies.path, config.registry.path)
    except ConfigurationInvalid:
        yield Finding("policies", "skipped", "they speak about the registry, which does not load")
        return
    except Failure as failure:
        problems = "\n".join([failure.message, *failure.members.get("problems", ())])
        yield Finding("policies", "wrong", problems, "Correct them; `taskpass policy check` looks again.")
        return
    yield Finding("policies", "ok", f"{len(engine.bundle.policies)} policies, hash {engine.bundle.hash[:12]}")
    cases = config.policies.path / "cases.yaml"
    try:
        report = run_cases(engine, read_cases(cases.read_text(), engine.bundle.compiled.vocabulary, file=str(cases)))
    except FileNotFoundError:
        yield Finding(
            "policy cases", "warning", f"there is no {cases}", "Write down what the policies are meant to answer."
        )
        return
    except (PolicyInvalid, OSError, UnicodeDecodeError) as error:
        yield Finding("policy cases", "wrong", str(error), f"Correct {cases}.")
        return
    if report.passed:
        yield Finding("policy cases", "ok", f"{len(report.results)} cases pass, every policy exercised")
    else:
        yield Finding("policy cases", "wrong", "a case fails, or a policy has none", "See `taskpass policy test`.")


def _keys(config: "Config") -> Iterator[Finding]:
    from broker.errors import ConfigurationInvalid
    from broker.stores import sealer_of

    try:
        sealer_of(config)
        yield Finding("sealing key", "ok", "readable, by its owner only")
    except ConfigurationInvalid as error:
        yield Finding("sealing key", "wrong", str(error), "Without it the broker has no signing keys.")
    file = config.keys.encryption_key_file
    for path in sorted(file.parent.glob("*.pem")) if file is not None else ():
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            yield Finding("private key", "wrong", f"{path} is open to others", f"chmod 600 {path}")
        else:
            yield Finding(
                "private key", "warning", f"{path} lies beside the broker", "Hand it to its holder, and remove it here."
            )


def _secrets(config: "Config") -> Iterator[Finding]:
    """Those that should have ended at their backends and have not."""
    from broker.errors import TaskpassError
    from broker.ledger.external_views import external_figures, stuck_grants
    from broker.model import GrantState
    from broker.stores import ledger_exists, open_ledger

    try:
        if not ledger_exists(config):
            return
        ledger = open_ledger(config)
    except (TaskpassError, OSError):  # said already
        return
    with ledger.read() as r:
        counts, stuck = external_figures(r), stuck_grants(r)
    ledger.close()
    for (issuer, state), count in sorted(counts.items()):
        if state == GrantState.STUCK:
            told = [f"{count} of {issuer} must end and do not; the broker tries on"]
            told += [
                f"{' '.join(f'{name}={value}' for name, value in row.handle.items())} under {row.task}: {row.problem}"
                for row in stuck
                if row.issuer == issuer
            ]
            advice = "Mend the backend, or end them there by hand: the next look confirms it."
            yield Finding("secrets", "wrong", "\n".join(told), advice)
        elif state == GrantState.REVOKING:
            yield Finding("secrets", "warning", f"{count} of {issuer} are being ended", "Look again in a minute.")


def _broker() -> Iterator[Finding]:
    context = Context.current()

    def get(url: str) -> tuple[int, bytes]:
        answer = context.transport.send(Request("GET", url, {"Accept": "application/json"}))
        return answer.status, answer.body

    try:
        issuer = context.issuer()
        from broker.cli.api import control_url

        control = control_url(context)
        yield Finding("broker", "ok", f"{issuer} answers; control at {control}")
        for base in dict.fromkeys((issuer, control)):
            yield _readiness(base, get)
    except Failure as failure:
        yield Finding("broker", "wrong", failure.message, failure.members.get("next"))


def _readiness(base: str, get: Callable[[str], tuple[int, bytes]]) -> Finding:
    import json

    status, body = get(f"{base}/readyz")
    try:
        given = json.loads(body)["reasons"]
        reasons = "; ".join(reason["detail"] for reason in given) or f"answered {status}"
        advice = " ".join(dict.fromkeys(reason["next"] for reason in given))
    except (ValueError, LookupError, TypeError):
        given, reasons, advice = [], f"answered {status}", "Its log says more."
    if status == 200 and given:
        return Finding("readiness", "warning", f"{base} issues credentials, degraded: {reasons}", advice)
    if status == 200:
        return Finding("readiness", "ok", f"{base} issues credentials")
    return Finding("readiness", "wrong", f"{base}: {reasons}", advice)


def _identity() -> Iterator[Finding]:
    context = Context.current()
    try:
        identity = context.identity()
        if identity is None:
            yield Finding("identity", "skipped", "no workload identity is configured here")
            return
        token = identity.assertion(context.issuer())
        yield Finding(
            "identity", "ok", f"there is one, of {len(token)} characters; `taskpass whoami` has the broker judge it"
        )
    except Exception as error:  # noqa: BLE001  (whatever is wrong with it is the finding)
        yield Finding("identity", "wrong", str(error), getattr(error, "next", None))
