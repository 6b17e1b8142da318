"""An agent's work: reads one invoice, with the credential that `taskpass run` has put into the environment.

python demo/read_invoice.py SERVICE_URL INVOICE
"""

import os
import sys
from http.client import HTTPConnection
from urllib.parse import urlsplit


def main(service: str, invoice: str) -> int:
    """Print the invoice. Returns the exit code."""
    connection = HTTPConnection(urlsplit(service).netloc, timeout=5)
    token = os.environ["TASKPASS_ACCESS_TOKEN"]
    connection.request("GET", f"/invoices/{invoice}", headers={"authorization": f"Bearer {token}"})
    answer = connection.getresponse()
    sys.stdout.write(f"{answer.status} {answer.read().decode()}\n")
    return 0 if answer.status == 200 else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], sys.argv[2]))
