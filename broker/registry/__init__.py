"""The registry: agents, resources, owners, operators, verifiers and trust, as files that a reviewer can read.

    registry = load(directory)                         # ConfigurationInvalid names every problem, with file and line
    registry.agents_for(workload)                      # who is this?
    registry.agent_problems(agent, now)                # may it act at all?
    narrow_parameters(resource, actions, parameters)   # are these parameters what the actions take?
    Registry.from_content(registry.to_content())       # how the ledger keeps it, under registry.hash
    diff(old, new)                                     # what a reload changes

A problem inside one agent's entry blocks that agent alone; any other refuses the whole registry.
"""

from broker.registry.core import Registry
from broker.registry.diff import Change, diff
from broker.registry.load import load
from broker.registry.parameters import narrow_parameters

__all__ = ["Change", "Registry", "diff", "load", "narrow_parameters"]
