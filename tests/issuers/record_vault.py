"""Record the flows anew against a real server: `python -m tests.issuers.record_vault`, with `bao` on the PATH."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.issuers.vault import Site
from tests.issuers.vault_flows import FLOWS, RECORDINGS, record


def main() -> None:
    with TemporaryDirectory() as folder:
        site = Site(Path(folder))
        try:
            for name in FLOWS:
                recording = record(name, site, Path(folder))
                (RECORDINGS / f"vault_{name}.json").write_text(written(recording))
                print(f"{name}: {len(recording['exchanges'])} exchanges with {recording['server']}")
        finally:
            site.close()


def written(recording: dict[str, Any]) -> str:
    """One exchange to a line."""
    head = {key: value for key, value in recording.items() if key != "exchanges"}
    lines = ",\n".join(f"  {json.dumps(exchange)}" for exchange in recording["exchanges"])
    return f'{json.dumps(head, indent=1)[:-2]},\n "exchanges": [\n{lines}\n ]\n}}\n'


if __name__ == "__main__":
    main()
