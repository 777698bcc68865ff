"""Rules of one pod that no node and no company can meet together: named as the pair."""

from __future__ import annotations

from dataclasses import replace

from planner.kubernetes.rules import HOSTNAME
from planner.kubernetes.snapshot import Pod


def contradiction(pod: Pod) -> str:
    """The first pair in words, or nothing. Selector and affinity; affinity and anti-affinity to the same pods."""
    rule, pair = pod.node_rule, None
    if rule.any_of is None:
        pair = rule.every.contradiction()
    else:
        # One term that can be met is enough.
        pairs = [
            replace(term, requirements=rule.every.requirements + term.requirements).contradiction()
            for term in rule.any_of
        ]
        pair = pairs[0] if pairs and all(pairs) else None
    if pair is not None:
        return f"{pair[0]} contradicts {pair[1]}"
    for wanted in pod.near:
        for avoided in pod.near if wanted.together else ():
            # A pod that means itself may begin a group of its own.
            alone = wanted.pods.matches(pod.namespace, pod.labels)
            narrower = avoided.topology_key == wanted.topology_key or wanted.topology_key == HOSTNAME
            if not avoided.together and avoided.pods == wanted.pods and narrower and not alone:
                return f"{wanted} contradicts {avoided}"
    return ""
