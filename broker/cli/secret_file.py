"""A secret in a file that its owner alone can read, replaced as a whole."""

import os
from pathlib import Path

from broker.cli.errors import Failure


def write_secret(path: Path, content: str) -> None:
    """Write `content` to `path`, mode 0600. A reader sees the old or the new one, never a part. Raises Failure."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(content)
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise Failure("system", f"{path} cannot be written: {error.strerror}.") from error
