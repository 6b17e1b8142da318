"""`taskpass serve`: token workers, and beside them one control process, on one ledger.

The supervisor opens the listening sockets, starts the control process first (it loads the files and the keys), then the
workers, restarts what dies, forwards SIGHUP to the control process, and stops everything on SIGTERM or SIGINT.
"""

import asyncio
import gc
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import cast

import structlog
import uvicorn

from broker.app import Process, Role, running
from broker.config import Config, load_config, split_listen
from broker.errors import TaskpassError
from broker.ledger import LedgerStopped
from broker.log import configure_logging
from broker.model import SystemCaller
from broker.telemetry.reports import Reports
from broker.web.connections import SlowClients
from broker.web.exchange import TokenConnection

log = structlog.get_logger(__name__)

_BACKLOG = 2_048
_ACCEPTED_AT_ONCE = 8
_ACCEPT_PAUSE_S = 0.1
_YIELDS = 5
"""How much nicer a token worker's loop is than all else here. The control process gets through with a kill though
tokens keep every core busy, and the worker's own writer ends a commit, for which others wait, before more is begun.
"""
_SWITCH_S = 0.0005
"""How long a token worker's writer waits for the interpreter when its loop is busy: it holds the ledger's turn."""
_GRACE_S = 5
_READY_WITHIN_S = 60
_RESTART_PAUSE_S = 1.0
_LEDGER_UNUSABLE = 3
"""Exit code of a process whose ledger was rolled back, replaced or damaged: restarting it would not help."""


class _Acceptor:
    """Takes a few connections in each turn of the event loop. The loop's own server would take all that wait, so that
    the worker that wakes first gets every client, and the others none.
    """

    def __init__(self, listening: socket.socket, make: Callable[[], asyncio.Protocol]) -> None:
        self._loop = asyncio.get_running_loop()
        self._listening, self._make = listening, make
        self._connecting: set[asyncio.Task[object]] = set()
        self._stopped = False
        listening.settimeout(0)
        self._listen()

    async def stop(self) -> None:
        """Take no more connections. Those taken have been made by the time it returns: one that came up later would
        not be told to end with the others, and its client would be served until there is no ledger any more.
        """
        self._stopped = True
        self._loop.remove_reader(self._listening)
        await asyncio.gather(*self._connecting, return_exceptions=True)

    def _listen(self) -> None:
        if not self._stopped:
            self._loop.add_reader(self._listening, self._accept)

    def _accept(self) -> None:
        try:
            for _ in range(_ACCEPTED_AT_ONCE):
                self._connect(self._listening.accept()[0])
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):  # another worker has it, or it is gone
            return
        except OSError as error:  # no descriptors left: the client waits in the queue until one is free
            log.error("cannot_accept", error=str(error))
            self._loop.remove_reader(self._listening)
            self._loop.call_later(_ACCEPT_PAUSE_S, self._listen)

    def _connect(self, connection: socket.socket) -> None:
        task = asyncio.ensure_future(self._loop.connect_accepted_socket(self._make, connection))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)


class _Server(uvicorn.Server):
    """Uvicorn, sharing its connections with other workers, ending the feed's streams first so that it can drain, and
    saying when it is ready.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        listening: socket.socket,
        process: Process,
        ready: Callable[[], None],
        slow_clients: SlowClients,
    ) -> None:
        super().__init__(config)
        self._listening = listening
        self._process = process
        self._ready = ready
        self._slow_clients = slow_clients
        self._acceptor: _Acceptor | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        protocol: Callable[..., asyncio.Protocol] = self.config.http_protocol_class
        make = partial(protocol, config=self.config, server_state=self.server_state, app_state={})
        self._acceptor = _Acceptor(self._listening, make)
        self._ready()

    async def on_tick(self, counter: int) -> bool:
        """Every tenth of a second, by Uvicorn."""
        if counter % 10 == 0:
            self._slow_clients.look(self.server_state.connections, time.monotonic())
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002  (Uvicorn's)
        """Stop serving, and nothing else: raised again after that, as Uvicorn does, the signal would end the process
        before it has written what it still has in memory.
        """
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._acceptor is not None:
            await self._acceptor.stop()
            self._listening.close()
        if self._process.feed is not None:
            await self._process.feed.stop()
        await super().shutdown(sockets)


def _settle_memory() -> None:
    """What was loaded stays: keep the garbage collector from walking it, and let it come by less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


async def serve_one(
    config: Config, *, role: Role, listening: socket.socket, ready: Callable[[], None], name: str = ""
) -> None:
    """One process of the broker, until it is told to stop."""
    async with running(config, role=role, name=name) as process:
        _settle_memory()
        if Role.CONTROL in role:
            _reload_on_hangup(process)
        else:
            os.nice(_YIELDS)  # on Linux this thread's alone; the writer's has been started
            sys.setswitchinterval(_SWITCH_S)
        server = _Server(
            _settings(config, process),
            listening=listening,
            process=process,
            ready=ready,
            slow_clients=SlowClients(limit_s=config.limits.slow_client_s),
        )
        _end_with_the_supervisor(server)
        _end_with_the_ledger(process, server)
        await server.serve([])
        if process.unusable.done():
            raise process.unusable.result()


def _settings(config: Config, process: Process) -> uvicorn.Config:
    limits = config.limits
    bounded = partial(TokenConnection, head_limit=limits.request_head_bytes, connections=limits.connections)
    return uvicorn.Config(
        process.app,
        loop="none",
        http=cast("type[asyncio.Protocol]", bounded),
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        date_header=False,
        proxy_headers=bool(config.serve.trusted_proxies),
        forwarded_allow_ips=config.serve.trusted_proxies,
        backlog=_BACKLOG,
        limit_concurrency=limits.connections,
        timeout_graceful_shutdown=_GRACE_S,
        timeout_keep_alive=75,
    )


def _end_with_the_ledger(process: Process, server: uvicorn.Server) -> None:
    """Stop serving when the ledger must not be used any more: nothing may be answered from a rolled-back one."""

    def end(unusable: "asyncio.Future[LedgerStopped]") -> None:
        why = unusable.result()
        log.critical("ledger_unusable", why=str(why), internal=why.internal)
        server.should_exit = True

    process.unusable.add_done_callback(end)


def _end_with_the_supervisor(server: uvicorn.Server) -> None:
    """A process whose supervisor was killed would keep the port, with nobody to restart or stop it."""
    supervisor = multiprocessing.parent_process()
    if supervisor is None:
        return
    loop, sentinel = asyncio.get_running_loop(), int(supervisor.sentinel)

    def end() -> None:
        loop.remove_reader(sentinel)
        log.critical("supervisor_died")
        server.should_exit = True

    loop.add_reader(sentinel, end)


def _reload_on_hangup(process: Process) -> None:
    loop = asyncio.get_running_loop()
    running_reloads: set[asyncio.Task[None]] = set()

    async def reload() -> None:
        try:
            await process.broker.admin.reload(SystemCaller(), "all", reason="SIGHUP")
            log.info("reloaded")
        except TaskpassError as error:
            log.error("reload_refused", problems=str(error))
        except Exception as error:  # noqa: BLE001  (a reload that fails must leave the process as it is)
            log.error("reload_failed", error=repr(error))

    def hangup() -> None:
        task = loop.create_task(reload())
        running_reloads.add(task)
        task.add_done_callback(running_reloads.discard)

    loop.add_signal_handler(signal.SIGHUP, hangup)


def listen_on(address: str) -> socket.socket:
    """A listening socket. Raises OSError with the address in it."""
    host, port = split_listen(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is written out because asyncio turns Nagle's algorithm off only where it sees TCP: without it every
    # answer of two writes waits 40 ms for the client's delayed acknowledgement.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise OSError(error.errno, f"cannot listen on {address}: {error.strerror}") from error
    listening.listen(_BACKLOG)
    listening.set_inheritable(True)
    return listening


@dataclass(slots=True)
class _Child:
    """One supervised process."""

    name: str
    role: Role
    listening: socket.socket
    process: BaseProcess | None = None
    started: float = 0.0


class Supervisor:
    """Runs the processes of `taskpass serve`."""

    def __init__(self, *, config_path: Path, config: Config) -> None:
        self._config_path = config_path
        self._context = multiprocessing.get_context("spawn")
        control = listen_on(config.serve.control_listen)
        tokens = listen_on(config.serve.listen)
        self._children = [_Child("control", Role.CONTROL, control)]
        self._children += [_Child(f"worker-{n}", Role.TOKENS, tokens) for n in range(config.serve.workers)]
        self._stopping = False
        self._exit_code = 0
        Reports(config.ledger.side_file(".metrics")).clear()

    def run(self) -> int:
        """Start everything and watch it until a signal. Returns the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop())
        signal.signal(signal.SIGHUP, lambda *_: self._hangup())
        for child in self._children:
            if not self._stopping and not self._start(child):
                self._stop()
                self._join()
                return 1
        log.info("serving", processes=len(self._children))
        while not self._stopping:
            self._watch()
        self._join()
        return self._exit_code

    def _start(self, child: _Child) -> bool:
        """Start one process and wait until it is ready. False when it could not."""
        receiver, sender = self._context.Pipe(duplex=False)
        process = self._context.Process(
            target=_child_main,
            args=(self._config_path, child.role, child.listening, sender, child.name),
            name=child.name,
        )
        process.start()
        sender.close()
        child.process, child.started = process, time.monotonic()
        if self._stopping:  # the signal came in between, and did not find this one
            process.terminate()
        with receiver:
            ready = wait([receiver, process.sentinel], timeout=_READY_WITHIN_S)
            if receiver in ready:
                with suppress(EOFError):
                    return bool(receiver.recv() == "ready")
        log.error("did_not_start", process=child.name, exit_code=process.exitcode)
        return False

    def _watch(self) -> None:
        """Restart what died. The control process comes back with everything that was committed."""
        alive = {child.process.sentinel: child for child in self._children if child.process is not None}
        for sentinel in wait(list(alive), timeout=0.5):
            assert isinstance(sentinel, int)
            child = alive[sentinel]
            if self._stopping:
                return
            assert child.process is not None
            child.process.join()  # it has ended; until it is collected, it has no exit code
            exit_code = child.process.exitcode
            log.error("process_died", process=child.name, exit_code=exit_code)
            if exit_code == _LEDGER_UNUSABLE:
                self._exit_code = 1
                self._stop()
                return
            if time.monotonic() - child.started < _RESTART_PAUSE_S:
                time.sleep(_RESTART_PAUSE_S)
            self._start(child)

    def _hangup(self) -> None:
        control = self._children[0].process
        if control is not None and control.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(control.pid, signal.SIGHUP)

    def _stop(self) -> None:
        """Tell every process to finish what it began."""
        self._stopping = True
        for child in self._children:
            if child.process is not None:
                child.process.terminate()

    def _join(self) -> None:
        """Wait for all of them. With the sockets closed here too, whoever comes now is refused at once and can go to
        another broker, instead of waiting in line for nobody.
        """
        for child in self._children:
            child.listening.close()
        for child in self._children:
            if child.process is not None:
                child.process.join(_GRACE_S + 5)
                if child.process.is_alive():
                    child.process.kill()
                    child.process.join()


def _child_main(config_path: Path, role: Role, listening: socket.socket, ready: Connection, name: str) -> None:
    """A supervised process: ignores the terminal's interrupt, which the supervisor handles."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def tell() -> None:
        with suppress(OSError):
            ready.send("ready")
            ready.close()

    try:
        config = load_config(config_path)
        configure_logging(config.log.level, config.log.format)
        import uvloop

        uvloop.run(serve_one(config, role=role, listening=listening, ready=tell, name=name))
    except LedgerStopped as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(_LEDGER_UNUSABLE)
    except TaskpassError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(1)
