"""Throwaway PostgreSQL servers for tests."""

import os

import pytest

from demo.postgres import Server, binaries

__all__ = ["Server", "server_or_skip"]


def server_or_skip(**settings: str) -> Server:
    """A running server. Skips the test where there is none to run, but never in CI."""
    folder = binaries()
    if folder is None:
        reason = "PostgreSQL (initdb, postgres) is not installed"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return Server(folder, settings)
