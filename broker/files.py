"""Reading a file that an operator named, without being stalled or filled by what it turns out to be."""

import os
import stat
from pathlib import Path

from broker.errors import ConfigurationInvalid, Problem


def read_regular(path: Path, limit: int) -> bytes:
    """The bytes of a regular file, at most `limit`. Raises OSError, or ValueError when it is no such file.

    A link to a regular file is one: mounted configuration consists of links. A pipe or a device is never read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("not a regular file")
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"larger than {limit} bytes")
    return data


def secret_in(path: Path, key: str) -> str:
    """The secret in a file that only its owner may read, which a key of the configuration names; without space around.

    Raises ConfigurationInvalid.
    """
    try:
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ValueError(f"is open to others; run: chmod 600 {path}")
        return read_regular(path, 4_096).decode().strip()
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigurationInvalid(f"{key} cannot be used.", problems=[Problem(f"{path}: {why}")]) from error
