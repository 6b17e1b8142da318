"""The `taskpass` command. Importing this package imports click and nothing else; each command's module is imported when
that command runs, so that getting a token does not pay for a server.

Streams: standard output is data and nothing else; whatever is said goes to standard error.
"""

from broker.cli.lazy import LazyGroup
from broker.cli.options import group_options

__all__ = ["main", "taskpass"]

TABLE = {
    "Use it from a workload": {
        "token": ("broker.cli.token:token", "Get one credential and print it."),
        "secret": ("broker.cli.secret:secret", "Get one secret: a database login, a cloud key, a lease."),
        "credential": (
            "broker.cli.credential:credential",
            "Secrets for AWS, git and kubectl; look at, renew, end one.",
        ),
        "run": ("broker.cli.run:run", "Run a command under a task of its own, with its credentials."),
        "task": ("broker.cli.tasks:task", "Open, follow and end tasks; their receipts."),
        "whoami": ("broker.cli.whoami:whoami", "Show who the broker takes you for."),
        "explain": ("broker.cli.evidence:explain", "Explain a decision: asked, decided, issued, what followed."),
        "approvals": ("broker.cli.evidence:approvals", "Requests that wait for a person."),
    },
    "Stop things": {
        "pause": ("broker.cli.agents:pause", "Pause an agent: nothing more is issued, all it holds dies."),
        "resume": ("broker.cli.agents:resume", "Let a paused agent ask again. Nothing revives."),
        "kill": ("broker.cli.kill:kill", "End credentials of an agent, task, resource, key, or all."),
        "kills": ("broker.cli.kill:kills", "Past kills and their receipts."),
        "holds": ("broker.cli.kill:holds", "Standing stops, and lifting them."),
    },
    "Operate the broker": {
        "login": ("broker.cli.login:login", "Open a short operator session with your registered key."),
        "logout": ("broker.cli.login:logout", "Forget the operator session."),
        "agents": ("broker.cli.agents:agents", "The registered agents: owner, state, what they hold."),
        "reload": ("broker.cli.upkeep:reload", "Put changed registry and policy files in force."),
        "keys": ("broker.cli.upkeep:keys", "The broker's signing keys."),
        "ledger": ("broker.cli.ledger:ledger", "Read, prove and verify the ledger."),
    },
    "Set it up": {
        "dev": ("broker.cli.server:dev", "Run a throwaway broker on this machine, to play with."),
        "init": ("broker.cli.server:init", "Write a commented configuration and registry, with keys."),
        "serve": ("broker.cli.server:serve", "Run the broker."),
        "db": ("broker.cli.db:db", "Create or upgrade the ledger's database."),
        "vault-setup": (
            "broker.cli.vault_setup:vault_setup",
            "Print, or apply, the least Vault policies that the broker needs.",
        ),
        "postgres-setup": (
            "broker.cli.postgres_setup:postgres_setup",
            "Print the SQL that gives the broker what it needs at PostgreSQL.",
        ),
        "registry": ("broker.cli.offline:registry", "Check registry files."),
        "policy": ("broker.cli.offline:policy", "Check, test and tabulate policies."),
        "validate": ("broker.cli.doctor:validate", "Check every file of a broker, and ask nobody."),
        "doctor": ("broker.cli.doctor:doctor", "Find out what is wrong, and what to do about it."),
        "completion": ("broker.cli.completion:completion", "Print the completion script of a shell."),
    },
}

EPILOG = """\b
Options of this page may stand before or after the command.
Exit codes: 0 done or automatic, 1 failed, 2 wrong usage or request, 3 never,
4 no or wrong identity, 5 approval pending, 6 not found.
"""

taskpass = LazyGroup(
    name="taskpass",
    table=TABLE,
    params=group_options(),
    help="Taskpass: credentials that are good for one task, and a kill you can prove.",
    epilog=EPILOG,
)


def main() -> None:
    """Entry point of the `taskpass` script."""
    from broker.cli.errors import run_to_exit_code

    raise SystemExit(run_to_exit_code(taskpass))
