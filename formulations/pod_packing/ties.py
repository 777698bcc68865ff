"""Rules between pods in an exact model: affinity, anti-affinity, topology spread, gangs. As `check` reads them.

Data of a rule: its owners' group, the groups that it means, and by domain D the pods outside the model: running owners,
fresh owners, and pods meant.
    O_D, M_D       fresh owners and pods meant in a domain, expressions;  b_D in {0,1}: O_D >= 1
    apart          b_D  =>  M_D <= 1 if owners are meant themselves, else 0;  no new pod meant beside running owners
    together       b_D  =>  M_D without fresh owners >= 1, or a_D;  sum of a_D <= 1 if the group may begin, else 0
    spread         b_D  =>  M_D - L <= max skew,  L <= M_D of every domain that counts
    gang           sum of x  <=  demand × z,   sum of x + pods that run  >=  least × z
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np

from formulations.pod_packing.problem import Near, Rule, Spread

if TYPE_CHECKING:
    from formulations.pod_packing.exact import ExactModel


def tie(exact: ExactModel) -> None:
    """Add the rules that concern pods of the model."""
    for rule in exact.problem.rules:
        counted = _Counted(exact, rule)
        if not counted.concerned:
            continue
        if isinstance(rule, Spread):
            _spread(exact, rule, counted)
        elif isinstance(rule, Near) and rule.together:
            _together(exact, rule, counted)
        elif isinstance(rule, Near):
            _apart(exact, rule, counted)
    _gangs(exact)


class _Counted:
    """Pods of a rule by domain, numbers outside the model and expressions inside."""

    def __init__(self, exact: ExactModel, rule: Rule) -> None:
        problem, packing = exact.problem, exact.packing
        self.domain = problem.domain[rule.topology]
        outside = packing.node >= 0
        outside[exact.pods] = False
        pods = np.flatnonzero(outside)
        classes, domains = problem.pod_class[pods], self.domain[packing.node[pods]]
        runs = problem.pod_node[pods] >= 0
        size = int(self.domain.max(initial=-1)) + 1

        def by_domain(chosen: np.ndarray) -> list[Any]:
            found: list[Any] = np.bincount(domains[chosen & (domains >= 0)], minlength=size).tolist()
            return found

        owns, means = classes == rule.owner, rule.matches[classes]
        self.running_owners = by_domain(owns & runs)
        self.owners, self.meant = by_domain(owns & ~runs), by_domain(means)
        #: Pods meant that are no fresh owners: those an affinity can lean on.
        self.others = by_domain(means & ~(owns & ~runs))
        self.off = []
        self.concerned = False
        for (i, k), count in exact.x.items():
            j, at = int(exact.klass[i]), int(self.domain[exact.nodes[k]])
            self.concerned |= j == rule.owner or bool(rule.matches[j])
            if j == rule.owner:
                if at < 0:
                    self.off.append(count)
                else:
                    self.owners[at] = self.owners[at] + count
            if at >= 0 and rule.matches[j]:
                self.meant[at] = self.meant[at] + count
                if j != rule.owner:
                    self.others[at] = self.others[at] + count
        self.begins = bool(rule.matches[rule.owner]) and not (problem.running[rule.matches] > 0).any()

    def present(self, exact: ExactModel, most: int) -> list[tuple[int, Any]]:
        """Domains where fresh owners may be, each with a truth that follows from one being there."""
        found: list[tuple[int, Any]] = []
        for at, owners in enumerate(self.owners):
            if isinstance(owners, int):
                if owners:
                    found.append((at, exact.model.new_constant(1)))
                continue
            here = exact.model.new_bool_var("")
            exact.model.add(owners <= most * here)
            found.append((at, here))
        return found


def _most(exact: ExactModel) -> int:
    return len(exact.packing.node)


def _apart(exact: ExactModel, rule: Near, counted: _Counted) -> None:
    own = int(rule.matches[rule.owner])
    for at, here in counted.present(exact, _most(exact)):
        exact.model.add(counted.meant[at] <= own).only_enforce_if(here)
    for at, owners in enumerate(counted.running_owners):
        for (i, k), count in exact.x.items():
            if owners and counted.domain[exact.nodes[k]] == at and rule.matches[exact.klass[i]]:
                exact.model.add(count == 0)


def _together(exact: ExactModel, rule: Near, counted: _Counted) -> None:
    for count in counted.off:
        exact.model.add(count == 0)
    alone = []
    for at, here in counted.present(exact, _most(exact)):
        begins = exact.model.new_bool_var("")
        alone.append(begins)
        exact.model.add(counted.others[at] + begins >= 1).only_enforce_if(here)
    if alone:
        exact.model.add(sum(alone) <= int(counted.begins))


def _spread(exact: ExactModel, rule: Spread, counted: _Counted) -> None:
    for count in counted.off:
        exact.model.add(count == 0)
    domains = {int(one) for one in counted.domain[rule.counted] if one >= 0}
    least: Any = 0
    if len(domains) >= max(1, rule.min_domains):
        least = exact.model.new_int_var(0, _most(exact), "")
        for at in domains:
            exact.model.add(least <= counted.meant[at])
    for at, here in counted.present(exact, _most(exact)):
        exact.model.add(counted.meant[at] - least <= rule.max_skew).only_enforce_if(here)


def _gangs(exact: ExactModel) -> None:
    """All of a gang's least number, or none. Pods of the gang outside the model count."""
    problem = exact.problem
    groups: dict[int, list[int]] = defaultdict(list)
    for i, j in enumerate(exact.klass.tolist()):
        if problem.gang[j] >= 0:
            groups[int(problem.gang[j])].append(i)
    outside = exact.packing.node >= 0
    outside[exact.pods] = False
    for gang, mine in groups.items():
        there = int((outside & (problem.gang[problem.pod_class] == gang)).sum())
        placed: Any = sum(exact.on(i) for i in mine)
        begun = exact.model.new_bool_var("")
        exact.model.add(placed <= sum(map(exact.size, mine)) * begun)
        exact.model.add(placed + there >= int(problem.gang_least[gang])).only_enforce_if(begun)
        fresh = outside & (problem.pod_node < 0) & (problem.gang[problem.pod_class] == gang)
        if fresh.any():
            exact.model.add(begun == 1)
