"""What the broker adds to a Vault lease: one request for a credential against the bare lease of the same login.

Beside: the same role of the same server, read on a kept connection with a token that stands, in turns with requests to
`taskpass serve`, by the same client. On: everything; two durable commits of the ledger for each credential. Vault is an
OpenBao with integrated storage, which is as durable, but without TLS: with it the bare lease would take longer. The
PostgreSQL behind it is durable. One at a time: no queue is compared. The figure is of requests within one task; a task
for each request opens a Vault session for each, and is in the note.

So are two yardsticks. The bare lease, a request to the broker that is answered at once, and two durable writes, of
which neither may overlap with the lease. And a server of the same libraries that commits a row, asks for that lease,
and commits another, and is no broker (`bench.secret_floor`): what it takes, no broker with a durable intent can save.
"""

from bench.machine import all_cores
from bench.run import Run
from bench.secret_backends import missing, vault
from bench.secret_calls import asking, overhead, yardstick
from bench.secret_floor import secret_floor
from bench.serving import serving

FIGURE = "secret_vault_overhead"


def measure(run: Run) -> None:
    """`secret_vault_overhead`."""
    if why := missing(vault=True):
        run.book.skipped([FIGURE], why)
        return
    site = run.site()
    with vault(run.scratch) as (server, backend):
        backend.serves(site, "records")
        with serving(site, core=all_cores()), secret_floor(run.scratch, server) as floor:
            print(f"  OpenBao {server.version}")
            run.book.detail("openbao", server.version)
            overhead(
                run,
                FIGURE,
                bare=server.lease,
                ours=asking(site, in_one_task=True),
                with_a_task_for_each=asking(site),
                bare_with_a_request_and_two_fsyncs=yardstick(site, server.lease, fsyncs=2),
                two_commits_around_it_by_the_same_libraries=floor,
            )
