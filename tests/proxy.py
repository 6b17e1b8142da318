"""A TCP proxy between a broker and a backend that loses, delays and cuts what a test tells it to."""

import socket
import threading
import time
from contextlib import suppress

COMMIT = b"NOTIFY ledger_"  # how the last message of every write of a ledger begins


class Proxy:
    """Forwards `port` (its own, on loopback) to `target`. Its attributes may be changed at any time."""

    def __init__(self, target: int, *, commit: bytes = COMMIT) -> None:
        self.target = target  # of new connections
        self.commit = commit  # what only the message in question holds
        self.delay_s = 0.0  # before anything is passed on, either way
        self.silent = False  # everything is taken, and nothing is passed on: a black hole for all connections
        self.on_commit = ""  # for the next COMMIT only: {lose,cut}_{request,answer}
        self.then_silent = False  # with `on_commit`: from then on `silent`
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._closed = False
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """End all connections."""
        pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()

    def close(self) -> None:
        """Stop listening, and end all connections."""
        self._closed = True
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self.cut()

    def _accept(self) -> None:
        while not self._closed:
            with suppress(OSError):
                client, _ = self._listening.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self.target))
                except OSError:
                    client.close()
                    continue
                _Connection(self, client, server)
                self._pairs.append((client, server))


class _Connection:
    """Two sockets, and one thread for each direction."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy, self._client, self._server = proxy, client, server
        self._lost = False  # nothing more passes, either way
        self._answer_lost = False
        self._cut_at_answer = False
        for source, sink in ((client, server), (server, client)):
            source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                if self._proxy.delay_s:
                    time.sleep(self._proxy.delay_s)
                hole = source is self._client and self._proxy.commit in data and self._at_commit()
                if self._cut_at_answer and source is self._server:
                    break
                if not (self._lost or self._proxy.silent or (self._answer_lost and source is self._server)):
                    sink.sendall(data)
                if hole:
                    self._proxy.silent = True
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _at_commit(self) -> bool:
        """Do what is to be done; whether everything is silent after this message."""
        what, self._proxy.on_commit = self._proxy.on_commit, ""
        if what == "lose_request":
            self._lost = True
        elif what == "lose_answer":
            self._answer_lost = True
        elif what == "cut_request":
            self._client.shutdown(socket.SHUT_RDWR)
            self._server.shutdown(socket.SHUT_RDWR)
            self._lost = True
        elif what == "cut_answer":  # not before it is there: who is cut off earlier may look before it is committed
            self._cut_at_answer = True
        return bool(what) and self._proxy.then_silent
