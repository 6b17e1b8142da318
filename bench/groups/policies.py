"""What a large policy bundle costs: 1,000 policies loaded, against 10, with everything else equal.

Beside: a second broker of ours on the same core, in paired bursts. On: everything. Of the thousand, the ten that can
match the request are the same as in the small bundle; the others are about other actions, some about these agents.
Every request has a parameter that none had before, so that each is decided and none remembered.
"""

from statistics import median

from bench.groups.tokens import summary
from bench.load import Target
from bench.run import Run
from bench.serving import serving


def measure(run: Run) -> None:
    """`issue_policies1000_ratio`."""
    few, many = run.site(policies=10), run.site(policies=1_000)
    with serving(few, core=run.server_core) as one, serving(many, core=run.server_core) as other:
        targets = [
            Target(name, f"{each.site.issuer}/oauth2/token", each.site.issuer, each.pids, novel=True)
            for name, each in (("10 policies", one), ("1000 policies", other))
        ]
        run.warm(targets)
        rounds = run.paired(targets, connections=64, rounds=run.times(8, 3), seconds=run.times(3, 2))
    ratios = [each["1000 policies"].rate / each["10 policies"].rate for each in rounds]
    run.book.figure("issue_policies1000_ratio", median(ratios), note=f"{min(ratios):.2f} to {max(ratios):.2f}")
    run.book.detail("policies", {name: summary([each[name] for each in rounds]) for name in rounds[0]})
