"""`taskpass credential`: secrets in the forms that other programs ask their helpers for, and what became of one."""

import json
import os
import sys
from typing import Any

import click

from broker.cli.api import Api, segment
from broker.cli.asking import secret_options
from broker.cli.context import Context
from broker.cli.errors import USAGE, Failure
from broker.cli.options import group
from broker.cli.output import Output
from broker.cli.secret import get, member
from broker.cli.text import facts
from broker.sdk.secret import Secret

_MAX_INPUT = 64 * 1024
_KUBERNETES = "client.authentication.k8s.io"
_TOKENS = ("token", "service_account_token", "access_token")


@group(short_help="Secrets for AWS, git and kubectl; look at, renew, end one.")
def credential() -> None:
    """Secrets in the forms that other programs ask their helpers for. None of these keeps anything.

    Each command's help shows the lines that go into the other program's configuration.
    """


@credential.command()
@click.argument("resource")
@click.argument("actions", nargs=-1, required=True)
@secret_options
def aws(resource: str, actions: tuple[str, ...], params: tuple[str, ...], task: str | None, ttl: int | None) -> None:
    r"""An AWS session, as `credential_process` of an AWS profile wants it (JSON, version 1).

    The AWS tools keep it until shortly before it ends and then ask again.

    \b
    Example, in ~/.aws/config:
      [profile reports]
      credential_process = taskpass credential aws reports-bucket reports:read
    """
    made = get(Api.of_workload(Context.current()), resource, actions=actions, params=params, task=task, ttl=ttl)
    body = {
        "Version": 1,
        "AccessKeyId": member(made, "access_key_id", "access_key"),
        "SecretAccessKey": member(made, "secret_access_key", "secret_key"),
        "Expiration": made.expires_at,
    }
    session = made.values.get("session_token") or made.values.get("security_token")
    click.echo(json.dumps(body if session is None else {**body, "SessionToken": session}))


@credential.command()
@click.option("--resource", required=True, metavar="RESOURCE", help="Its audience, or its id.")
@click.option("--action", "actions", multiple=True, required=True, metavar="ID", help="An action; repeatable.")
@secret_options
@click.option("--host", default="github.com", show_default=True, metavar="HOST", help="Answer for this host alone.")
@click.option(
    "--repository-param",
    metavar="NAME",
    help="Send the repository's name as this parameter. Needs credential.useHttpPath in git.",
)
@click.argument("operation", metavar="get|store|erase")
def git(
    resource: str,
    actions: tuple[str, ...],
    params: tuple[str, ...],
    task: str | None,
    ttl: int | None,
    host: str,
    repository_param: str | None,
    operation: str,
) -> None:
    r"""A git credential helper: git says on standard input what it needs, and is answered on standard output.

    It answers for one host, over https, and for nobody else. Nothing is stored, so `store` and `erase` do nothing. When
    the broker refuses, git is told to stop instead of asking for a password.

    \b
    Example, in ~/.gitconfig:
      [credential "https://github.com"]
        helper = "!taskpass credential git --resource acme-repos --action repo:read"
    """
    asked = _described(sys.stdin.read(_MAX_INPUT + 1))
    if operation != "get" or asked.get("protocol") != "https" or asked.get("host") != host:
        return
    if repository_param is not None:
        params = (*params, f"{repository_param}={json.dumps(_repository(asked))}")
    try:
        made = get(Api.of_workload(Context.current()), resource, actions=actions, params=params, task=task, ttl=ttl)
        lines = {
            "username": made.values.get("username", "x-access-token"),
            "password": member(made, "token", "password"),
            "password_expiry_utc": str(made.expires),
        }
        if any("\n" in value or "\0" in value for value in lines.values()):
            raise Failure("unfit", f"The secrets of {made.resource} do not fit git's lines.")
    except Exception:
        click.echo("quit=1")
        raise
    for name, value in lines.items():
        click.echo(f"{name}={value}")


@credential.command()
@click.argument("resource")
@click.argument("actions", nargs=-1, required=True)
@secret_options
def kube(resource: str, actions: tuple[str, ...], params: tuple[str, ...], task: str | None, ttl: int | None) -> None:
    r"""An ExecCredential, as an `exec` user of a kubeconfig wants it: a token, or a client certificate with its key.

    \b
    Example, in a kubeconfig:
      users:
        - name: agent
          user:
            exec:
              apiVersion: client.authentication.k8s.io/v1
              command: taskpass
              args: [credential, kube, cluster-a, pods:read]
              interactiveMode: Never
    """
    version = _exec_version(os.environ.get("KUBERNETES_EXEC_INFO", ""))
    made = get(Api.of_workload(Context.current()), resource, actions=actions, params=params, task=task, ttl=ttl)
    body = {"apiVersion": version, "kind": "ExecCredential", "status": _exec_status(made)}
    click.echo(json.dumps(body))


@credential.command()
@click.argument("secret_id", metavar="ID")
def show(secret_id: str) -> None:
    """What became of a secret: its state, what finds it at its backend, when it ends. Never its values."""
    body = Api.of_anyone(Context.current()).get(f"/v1/credentials/{segment(secret_id)}")
    Output.current().one(body, human=lambda: _told(body))


@credential.command()
@click.argument("secret_id", metavar="ID")
@click.option("--ttl", type=click.IntRange(1), metavar="SECONDS", help="From now on. Default: as at first.")
def renew(secret_id: str, ttl: int | None) -> None:
    """Have a secret live longer, its values unchanged. Never beyond its task, nor what its backend allows.

    Only what says `renewable` can be: leases, and database logins. It is decided anew, like a request for another one.
    """
    body = Api.of_workload(Context.current()).renew(secret_id, ttl)
    Output.current().one(body, human=lambda: _told(body))


@credential.command()
@click.argument("secret_id", metavar="ID")
def revoke(secret_id: str) -> None:
    """Give a secret back early. It is `revoked` once its backend confirmed that; until then it is `revoking`."""
    body = Api.of_workload(Context.current()).post(f"/v1/credentials/{segment(secret_id)}/revoke")
    Output.current().one(body, human=lambda: _told(body))


def _told(body: dict[str, Any]) -> str:
    shown = {name: value for name, value in body.items() if name != "id" and not isinstance(value, dict | list)}
    handle = " ".join(f"{name}={value}" for name, value in (body.get("handle") or {}).items())
    return "\n".join([str(body["id"]), *facts([*shown.items(), ("handle", handle)])])


def _described(text: str) -> dict[str, str]:
    """What git wrote: `name=value` lines up to an empty one."""
    if len(text) > _MAX_INPUT:
        raise Failure("usage", f"git wrote more than {_MAX_INPUT} characters.", exit_code=USAGE)
    described = {}
    for line in text.splitlines():
        if not line:
            break
        name, _, value = line.partition("=")
        described[name] = value
    return described


def _repository(asked: dict[str, str]) -> str:
    name = asked.get("path", "").rstrip("/").rpartition("/")[2].removesuffix(".git")
    if not name:
        hint = "Set credential.useHttpPath = true for this host."
        raise Failure("usage", "git does not say which repository it is for.", exit_code=USAGE, next=hint)
    return name


def _exec_version(info: str) -> str:
    """The version that kubectl speaks; v1 where it does not say."""
    try:
        version = json.loads(info)["apiVersion"] if info else f"{_KUBERNETES}/v1"
    except (ValueError, KeyError, TypeError, RecursionError):
        version = None
    if version not in (f"{_KUBERNETES}/v1", f"{_KUBERNETES}/v1beta1"):
        raise Failure(
            "usage", f"KUBERNETES_EXEC_INFO asks for no version of {_KUBERNETES} known here.", exit_code=USAGE
        )
    return str(version)


def _exec_status(made: Secret) -> dict[str, str]:
    status = {"expirationTimestamp": made.expires_at}
    if "certificate" in made.values and "private_key" in made.values:
        chain = [made.values[name].strip() for name in ("certificate", "ca_chain") if made.values.get(name)]
        return status | {"clientCertificateData": "\n".join(chain), "clientKeyData": made.values["private_key"]}
    return status | {"token": member(made, *_TOKENS)}
