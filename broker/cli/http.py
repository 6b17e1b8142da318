"""One HTTP exchange with the broker, by the standard library: start-up is what a command spends most of its time on."""

import time
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from urllib.parse import urlsplit

import click

from broker.cli.errors import Failure
from broker.sdk.protocol import MAX_ANSWER, TIMEOUT_S, Request, Response


class Transport:
    """Sends requests, with the certificate authorities that were asked for, and tells about it with `--debug`."""

    def __init__(self, *, ca_file: Path | None = None, debug: bool = False) -> None:
        self._ca_file = ca_file
        self._debug = debug

    def send(self, request: Request, *, timeout_s: float = TIMEOUT_S) -> Response:
        """The answer, whatever its status. Redirects are answers. Raises Failure if nobody answers."""
        url = urlsplit(request.url)
        began = time.monotonic()
        connection = self._connect(url.scheme, url.netloc, timeout_s)
        try:
            target = f"{url.path or '/'}?{url.query}" if url.query else url.path or "/"
            connection.request(request.method, target, body=request.body or None, headers=dict(request.headers))
            answer = connection.getresponse()
            body = answer.read(MAX_ANSWER + 1)
            headers = {name.lower(): value for name, value in answer.getheaders()}
        except (OSError, HTTPException, ValueError) as error:
            raise _unreachable(url.netloc, error) from error
        finally:
            connection.close()
        if len(body) > MAX_ANSWER:
            raise Failure("server_error", f"{url.netloc} sent an answer of more than {MAX_ANSWER} bytes.")
        if self._debug:
            took, id_ = (time.monotonic() - began) * 1000, headers.get("x-request-id")
            note = f"{request.method} {request.url} -> {answer.status} in {took:.0f} ms{f' {id_}' if id_ else ''}"
            click.echo(note, err=True)
        return Response(answer.status, headers, body)

    def _connect(self, scheme: str, netloc: str, timeout_s: float) -> HTTPConnection:
        if scheme != "https":
            return HTTPConnection(netloc, timeout=timeout_s)
        import ssl

        try:
            context = ssl.create_default_context(cafile=self._ca_file)
        except (OSError, ssl.SSLError) as error:
            raise Failure(
                "usage", f"--ca-file {self._ca_file} holds no certificates that can be read: {error}.", exit_code=2
            ) from error
        return HTTPSConnection(netloc, timeout=timeout_s, context=context)


def _unreachable(netloc: str, error: Exception) -> Failure:
    cause = str(getattr(error, "verify_message", "") or getattr(error, "strerror", "") or error) or type(error).__name__
    advice = (
        "Give the broker's certificate authority with --ca-file."
        if "certificate" in cause
        else ("Is the broker running, and is --url right? `taskpass doctor` looks closer.")
    )
    return Failure("unreachable", f"{netloc} did not answer: {cause}.", next=advice)
