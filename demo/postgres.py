"""Throwaway PostgreSQL servers: real ones, of this machine's packages, in a directory of their own."""

import os
import pwd
import shutil
import signal
import subprocess
import time
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import psycopg

from demo.ports import free_port


def binaries(*others: str) -> Path | None:
    """Where initdb and postgres are, and `others` of its programs."""
    found = [Path(path).parent for path in (shutil.which("initdb"),) if path]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    needed = ("initdb", "postgres", *others)
    return next((folder for folder in found if all((folder / name).exists() for name in needed)), None)


def account() -> dict[str, Any]:
    """Whose processes its programs are to be: it refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    postgres = pwd.getpwnam("postgres")
    return {"user": postgres.pw_uid, "group": postgres.pw_gid, "extra_groups": ()}


class Server:
    """One cluster. Its databases are as durable as in production, unless the settings say otherwise."""

    def __init__(self, folder: Path, settings: dict[str, str]) -> None:
        self._folder, self._settings = folder, settings
        self.place = Path(mkdtemp(prefix="taskpass-pg-"))
        self._account = account()
        if self._account:
            os.chown(self.place, self._account["user"], self._account["group"])
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._databases = 0
        initdb = ["initdb", "-D", "data", "-U", "taskpass", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"]
        subprocess.run(  # noqa: S603
            self._command(initdb), cwd=self.place, check=True, capture_output=True, **self._account
        )
        self.start()

    def url(self, database: str = "postgres", *, port: int | None = None) -> str:
        """How to reach a database, through `port` if a proxy is to be in between."""
        return f"postgresql://taskpass@127.0.0.1:{port or self.port}/{database}"

    def socket_url(self, database: str) -> str:
        """The same by the unix socket."""
        return f"postgresql:///{database}?host={self.place}&port={self.port}&user=taskpass"

    def new_database(self, *, like: str = "template1") -> str:
        """An empty database, or a copy of one that nobody is connected to; its name."""
        self._databases += 1
        name = f"ledger_{self._databases}"
        self.run(f"CREATE DATABASE {name} TEMPLATE {like}")
        return name

    def run(self, sql: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """Run a statement as the superuser, past the ledger."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(sql.encode())
            return cursor.fetchall() if cursor.description else []

    @property
    def version(self) -> int:
        """The major version."""
        ((number,),) = self.run("SELECT current_setting('server_version_num')")
        return int(str(number)) // 10_000

    def ask_for_passwords(self, access: str) -> None:
        """Let in, from now on, by these lines of pg_hba.conf; in the beginning anybody on this machine is."""
        (self.place / "data/pg_hba.conf").write_text(access)
        self.run("SELECT pg_reload_conf()")

    def start(self) -> None:
        """Start, or start again."""
        settings = {"listen_addresses": "127.0.0.1", "port": str(self.port), "unix_socket_directories": str(self.place)}
        options = [part for pair in (settings | self._settings).items() for part in ("-c", "=".join(pair))]
        with (self.place / "log").open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603
                self._command(["postgres", "-D", "data", *options]),
                cwd=self.place,
                **self._account,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 30
        while True:
            try:
                psycopg.connect(self.url(), connect_timeout=2).close()
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
            else:
                return

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop: SIGINT ends all sessions at once and in order, SIGKILL is a crash."""
        assert self._process is not None
        self._process.send_signal(how)
        self._process.wait(30)
        if how is signal.SIGKILL:  # its children notice by themselves, and a new one must not start before
            (self.place / "data/postmaster.pid").unlink(missing_ok=True)
            time.sleep(0.1)
        self._process = None

    def close(self) -> None:
        """Stop it and remove everything."""
        if self._process is not None:
            self.stop(signal.SIGQUIT)  # without tidying up what is removed next
        shutil.rmtree(self.place, ignore_errors=True)

    def _command(self, words: list[str]) -> list[str]:
        return [str(self._folder / words[0]), *words[1:]]
