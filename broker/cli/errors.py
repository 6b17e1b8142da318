"""How a command fails: one sentence, what to do next, and an exit code that a script can act on."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

import click

DONE: Final = 0
FAILED: Final = 1
USAGE: Final = 2
NEVER: Final = 3
NO_IDENTITY: Final = 4
PENDING: Final = 5
NOT_FOUND: Final = 6
_INTERRUPTED: Final = 130

_IDENTITY = frozenset({"invalid_client", "invalid_grant", "unauthorized_client", "forbidden", "no_identity"})
_OUTCOMES: Mapping[str, int] = {"never": NEVER, "approval": PENDING}
_SHOWN = ("outcome", "policies", "approval", "problems", "presented", "hold", "decision_id", "next", "request_id")


class Failure(Exception):
    """Ends the command. `members` are further members of the error object, as the broker names them."""

    def __init__(self, code: str, message: str, *, exit_code: int = FAILED, **members: Any) -> None:  # noqa: ANN401
        super().__init__(message)
        self.message = message
        self.code = code
        self.exit_code = exit_code
        self.members = {name: value for name, value in members.items() if value is not None}

    @classmethod
    def of_answer(cls, status: int, body: Mapping[str, Any]) -> "Failure":
        """The broker's refusal, in either dialect: RFC 6749 at the token endpoint, RFC 9457 elsewhere."""
        code = str(body.get("error") or body.get("code") or f"http_{status}")
        message = str(body.get("error_description") or body.get("detail") or f"The broker answered {status}.")
        members = {name: body[name] for name in _SHOWN if body.get(name)}
        return cls(code, message, exit_code=_exit_code(status, code, body), **members)

    def as_dict(self) -> dict[str, Any]:
        """The one object on standard error under `-o json`."""
        fixed = {name: self.members.get(name) for name in ("decision_id", "policies", "approval", "next")}
        return {"error": {"code": self.code, "message": self.message, **fixed, **self.members}}


def _exit_code(status: int, code: str, body: Mapping[str, Any]) -> int:
    outcome = body.get("outcome")
    if isinstance(outcome, str) and outcome in _OUTCOMES:
        return _OUTCOMES[outcome]
    if code == "not_found":
        return NOT_FOUND
    if status == 401 or code in _IDENTITY:
        return NO_IDENTITY
    return USAGE if code.startswith("invalid_") else FAILED


def run_to_exit_code(command: click.Command, args: Sequence[str] | None = None) -> int:
    """Run the command line to its end; every failure is reported here, in one place."""
    arguments = list(sys.argv[1:] if args is None else args)
    try:
        result = command.main(args=arguments, prog_name="taskpass", standalone_mode=False)
        return result if isinstance(result, int) else DONE
    except click.exceptions.Exit as end:
        return end.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        return _INTERRUPTED
    except BrokenPipeError:  # whoever read our output has gone; the interpreter must not trip over it again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except click.ClickException as error:
        return _report_usage(error, arguments)
    except Failure as failure:
        return _report(failure, arguments)
    except Exception as error:
        if debugging(arguments):
            raise
        return _report(_known(error), arguments)


def _known(error: Exception) -> Failure:
    """A refusal of the broker's own code, or of the SDK, as a failure of the command."""
    code, sentence = getattr(error, "code", None), getattr(error, "sentence", None)
    problems = [str(problem) for problem in getattr(error, "problems", ())] or None
    if isinstance(code, str) and isinstance(sentence, str):  # broker.errors.TaskpassError
        return Failure(code, sentence, problems=problems, next=getattr(error, "next", None))
    if isinstance(code, str):  # broker.sdk.errors.BrokerError
        exit_code = NO_IDENTITY if code in _IDENTITY else FAILED
        return Failure(code, str(error), exit_code=exit_code, next=getattr(error, "next", None))
    if isinstance(error, OSError):
        return Failure("system", f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}.")
    return Failure("internal", f"{type(error).__name__}: {error}", next="Run it again with --debug to see where.")


def _report_usage(error: click.ClickException, arguments: Sequence[str]) -> int:
    """What click found wrong with the command line."""
    if wants_json(arguments):
        return _report(Failure("usage", error.format_message(), exit_code=error.exit_code), arguments)
    error.show()
    return error.exit_code


def _report(failure: Failure, arguments: Sequence[str]) -> int:
    if wants_json(arguments):
        click.echo(json.dumps(failure.as_dict()), err=True)
        return failure.exit_code
    for line in _lines(failure):
        click.echo(line, err=True, color=False if no_color(arguments) else None)
    return failure.exit_code


def _lines(error: Failure) -> list[str]:
    from broker.cli.text import clean

    members = error.members
    word = {NEVER: "never", PENDING: "pending"}.get(error.exit_code, "error")
    head = click.style(f"{word}:", fg="yellow" if error.exit_code == PENDING else "red", bold=True)
    lines = [f"{head} {clean(error.message.removeprefix('Never: '))}"]
    lines += [f"  - {clean(problem)}" for problem in members.get("problems", ())]
    approval = members.get("approval") or {}
    facts = {
        "policies": ", ".join(members.get("policies", ())),
        "approval": approval.get("id") if isinstance(approval, Mapping) else None,
        "presented": " ".join(f"{name}={value}" for name, value in (members.get("presented") or {}).items()),
        "hold": members.get("hold"),
        "decision": members.get("decision_id"),
        "request": members.get("request_id") if "decision_id" not in members else None,
        "next": members.get("next"),
    }
    width = max(len(name) for name in facts)
    lines += [f"  {name:<{width}}  {clean(value)}" for name, value in facts.items() if value]
    return lines


def wants_json(arguments: Sequence[str]) -> bool:
    """Whether failures are to be JSON: asked of the raw arguments, because these may be what is wrong."""
    wanted = os.environ.get("TASKPASS_OUTPUT")
    ours = _ours(arguments)
    for position, argument in enumerate(ours):
        if argument in ("-o", "--output") and position + 1 < len(ours):
            wanted = ours[position + 1]
        elif argument.startswith("--output="):
            wanted = argument.partition("=")[2]
        elif argument.startswith("-o") and not argument.startswith("--") and len(argument) > 2:
            wanted = argument[2:]
    return wanted == "json"


def no_color(arguments: Sequence[str]) -> bool:
    """Whether colours are unwanted, by option or by `NO_COLOR`."""
    return bool(os.environ.get("NO_COLOR")) or "--no-color" in _ours(arguments)


def debugging(arguments: Sequence[str]) -> bool:
    """Whether a trace is welcome."""
    return bool({"-v", "--debug"} & set(_ours(arguments)))


def _ours(arguments: Sequence[str]) -> Sequence[str]:
    """The arguments before `--`; what follows is another program's."""
    return arguments[: arguments.index("--")] if "--" in arguments else arguments
