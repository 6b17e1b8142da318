"""What a workload runs to learn its own identity: asks the demo's platform for a token that names it to one audience.

python demo/identity.py WORKLOAD AUDIENCE      (DEMO_IDP and DEMO_CA say where the platform is)
"""

import json
import os
import ssl
import sys
from http.client import HTTPSConnection
from urllib.parse import urlencode, urlsplit


def main(workload: str, audience: str) -> None:
    """Print the token."""
    context = ssl.create_default_context(cafile=os.environ["DEMO_CA"])
    connection = HTTPSConnection(urlsplit(os.environ["DEMO_IDP"]).netloc, timeout=5, context=context)
    connection.request("POST", "/token", urlencode({"sub": workload, "aud": audience}))
    sys.stdout.write(json.load(connection.getresponse())["token"] + "\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
