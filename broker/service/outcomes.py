"""What a caller is told of each recorded outcome: the code, the sentence, and what to do next."""

from collections.abc import Sequence

import policies
from broker.errors import AccessDenied, InvalidGrant, NotAuthenticated, TaskpassError, UnauthorizedClient, Unavailable
from broker.ledger.commands.issue import Pending, Refused, Verdict
from broker.model import Agent


def refusal_error(refused: Refused, *, grant: str) -> TaskpassError:
    """A guard refused at the commit. "Refused by policy", "on hold" and "dead credential" never look alike."""
    sentence = refused.sentence
    match refused.reason:
        case "replayed":
            error = InvalidGrant if grant == "jwt_bearer" else NotAuthenticated
            return error(sentence)
        case "held":
            return AccessDenied(
                sentence,
                outcome="held",
                hold=refused.hold,
                retry=False,
                next="Ask an operator; nothing is issued while the hold stands.",
            )
        case "task_not_found":
            return UnauthorizedClient(sentence)
        case "task_over":
            return AccessDenied(sentence, outcome="task_over", next="Open a new task: `taskpass task open`.")
        case "issuance_stopped":
            return Unavailable(sentence, retry_after=30)
        case _:
            return AccessDenied(sentence, outcome=refused.reason)


def never(decision: policies.Never, agent: Agent) -> AccessDenied:
    """Policy says that no agent, or not this one, may do this by itself or with approval."""
    reasons = "; ".join(reason.rstrip(".") for reason in decision.reasons)
    return AccessDenied(
        f"Never: {reasons}.",
        outcome="never",
        policies=list(decision.policies),
        retry=False,
        next=f"Asking again will not help. {agent.id} is owned by {agent.owner}; see `taskpass explain`.",
    )


def approval_needed(pending: Pending, gates: Sequence[policies.Gate], verdict: Verdict | None) -> AccessDenied:
    """A human must decide first. The text carries id and approvers, because many clients show nothing else."""
    approvers = sorted({gate.approvers for gate in gates})
    reasons = " ".join(gate.reason for gate in gates if gate.reason)
    return AccessDenied(
        f"Approval {pending.approval_id} needed from {', '.join(approvers)}. {reasons}".strip(),
        outcome="approval",
        policies=list(verdict.policies) if verdict else [],
        approval={
            "id": pending.approval_id,
            "approvers": approvers,
            "link": f"/v1/approvals/{pending.approval_id}",
        },
        next="Recorded as pending. Deciding on approvals comes with a later release; until then it only expires.",
        decision_id=pending.decision_id,
    )
