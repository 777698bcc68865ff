"""Blocks of a linear model that a few rows couple to each other and to a few integers, which alone have costs.

    minimise  c y   subject to  L <= A0 y + sum_b A_b x_b <= U   (coupling rows),   x_b in X_b,   y integer in a box

X_b : the integer points of block b's own rows and bounds; a plan is one of them.

Need    at any prices w of the coupling rows (w >= 0 where only L is finite, w <= 0 where only U is) every solution has
            (w A0) y >= side(w) + sum_b V_b(w),   side(w) = sum_i (w_i > 0 ? w_i L_i : w_i U_i),
        V_b(w) = min over X_b of -w A_b x_b: what block b takes at least (Lagrange); the solver's bound of it counts.
        -w A_b x_b >= V_b(w) is a row of block b that whole blocks keep, and the linear relaxation does not.
Bound   minimise c y over the integers y with all needs known so far: a small program. It is at least the bound of the
        Lagrangian at each of the prices, side(w) + sum_b V_b(w) + min over the box of (c - w A0) y.
Master  minimise c y with a share of each plan that is known, sum of a block's shares = 1.
Prices  first those of the linear relaxation, then on the way from the best ones so far to those of the master
        (Wentges), until both meet. After that y is taken whole: at the y of the bound, the master without costs gives
        the prices by which some block has no plan there, or shows that shares of plans are enough. This is the bound of
        Dantzig and Wolfe with y whole, by Benders' rows.

Reference: Dantzig and Wolfe, Operations Research 8 (1960); Wentges, Int. Trans. Oper. Res. 4 (1997).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse import csc_matrix, csr_matrix

from formulations.backends.linear import FloatArray, IntArray, LinearBuilder, LinearModel, solve_linear_mathopt
from formulations.backends.relaxation import Relaxation, relax
from formulations.outcome import Budget, SolveOptions, Status

#: Share of the way from the best prices to those of the master. Source: rounds of a few instances; measured.
STEP = 0.5
#: Rounds in a row that do not raise the bound by the gap, after which it is left at that.
MOST_FLAT = 4
#: Seconds for one block's program; its bound counts.
BLOCK_S = 5.0
#: Price of a block without a plan, as a multiple of what all blocks need: only where nothing else is left.
MISSING = 100.0
#: Needs above so many times their largest coefficient are left out: a solver takes such rows for none, or breaks down.
HUGE = 1e7
#: Largest cost in a block's program, and the least that is scaled to it.
COST, TINY = 1e3, 1e-9
#: Rows are loosened by this share, as solvers keep theirs to 1e-6 only.
LOOSE = 1e-6
#: Best prices whose rows of the blocks are taken.
MOST_PRICES = 4


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Its columns in the whole model, and the model of its own rows."""

    columns: IntArray
    model: LinearModel


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """A solution of a block, [its columns]."""

    block: int
    values: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class Priced:
    """Prices w of the coupling rows [rows], w A0 [y], V_b [blocks], and what w A0 y must be at least."""

    prices: FloatArray
    gives: FloatArray
    least: FloatArray
    need: float


class Decomposition:
    """A model and its blocks; `plans`, `priced` and `bound` grow with every round."""

    def __init__(self, model: LinearModel, block: IntArray, gap: float) -> None:
        """block : label of each column's block, -1 for y, [n]; gap : of one block's program.

        Raises ValueError where a block has costs.
        """
        if model.cost[block >= 0].any() or not model.integer[block < 0].all():
            raise ValueError("costs are those of integers outside all blocks")
        self.model, self.y, self.gap = model, np.flatnonzero(block < 0), gap
        matrix = csr_matrix((model.value, (model.row, model.column)), (model.row_lower.size, model.num_variables))
        own = block[model.column]
        first = np.full(model.row_lower.size, np.iinfo(np.int64).max)
        last = np.full(model.row_lower.size, -1)
        np.minimum.at(first, model.row, own)
        np.maximum.at(last, model.row, own)
        alone = (first == last) & (first >= 0)
        self.coupling = np.flatnonzero(~alone)
        self.matrix: csc_matrix = matrix[self.coupling].tocsc()
        self.lower, self.upper = model.row_lower[self.coupling], model.row_upper[self.coupling]
        self.blocks = [
            _block(model, matrix, np.flatnonzero(block == b), np.flatnonzero(alone & (first == b)))
            for b in np.unique(block[block >= 0]).tolist()
        ]
        self.plans: list[Plan] = []
        self.priced: list[Priced] = []
        self.bound = -np.inf
        self._known: set[tuple[int, bytes]] = set()

    def change(self, model: LinearModel) -> None:
        """Other costs, bounds of y and offset: needs and plans stay true, the bound is found anew."""
        self.model = model
        self.bound = max((self._bound(one) for one in self.priced), default=-np.inf)

    def _bound(self, one: Priced) -> float:
        """The Lagrangian's bound at some prices."""
        model, y = self.model, self.y
        left = model.cost[y] - one.gives
        return model.offset + one.need + float(np.minimum(left * model.lower[y], left * model.upper[y]).sum())

    @property
    def best(self) -> Priced:
        """The prices of the highest bound so far."""
        return max(self.priced, key=self._bound)

    def meet(self, first: FloatArray, gap: float, budget: Budget) -> None:
        """Rounds until bound and master meet within the gap, nothing new comes, or time is up.

        first : prices of the coupling rows to begin with.
        """
        step, flat = STEP, 0
        if self._price(self._signed(first), budget) is None:
            return
        while (master := self._relaxed(None, budget)) is not None:
            best, known = self.best, len(self.plans)
            reached = self._bound(best)
            if master.objective - reached <= gap * abs(master.objective):
                return
            paid = self._signed(master.duals[: self.coupling.size])
            found = self._price(best.prices + step * (paid - best.prices), budget)
            new = len(self.plans) > known
            if found is None or (step == 1.0 and not new):
                return
            rises = self._bound(found) > reached + LOOSE * abs(reached)
            flat = 0 if self._bound(found) > reached + gap * abs(reached) else flat + 1
            if flat == MOST_FLAT:
                return
            step = STEP if new or rises else 1.0

    def whole(self, enough: float, rounds: int, budget: Budget) -> bool:
        """Rounds at whole y; True once the bound is enough, shares of plans are enough for it, or time is up."""
        for _ in range(rounds):
            y = None if self.bound >= enough else self._least_whole(budget)
            master = None if y is None else self._relaxed(y, budget)
            if y is None or master is None or master.objective <= LOOSE:
                return True
            known = len(self.plans)
            paid = self._signed(master.duals[: self.coupling.size])
            found = self._price(paid / max(float(np.abs(paid).max(initial=0.0)), TINY), budget)
            if found is None:
                return True
            forbidden = found.gives @ y < found.need - LOOSE * abs(found.need)
            if not forbidden and len(self.plans) == known:
                return True
        return False

    def _price(self, prices: FloatArray, budget: Budget) -> Priced | None:
        """Every block at these prices; plans that are new are kept. None when time is up before all are known."""
        cost = -(self.matrix.T @ prices)
        least = np.zeros(len(self.blocks))
        for b, block in enumerate(self.blocks):
            if budget.stop() is not None:
                return None
            seconds = max(0.05, min(BLOCK_S, budget.remaining_s))
            options = SolveOptions(time_limit_s=seconds, relative_gap=self.gap)
            # Solvers end within absolute tolerances, and would take costs that small for none.
            scale = COST / max(float(np.abs(cost[block.columns]).max(initial=0.0)), TINY)
            changed = replace(block.model, cost=cost[block.columns] * scale)
            result, values = solve_linear_mathopt(changed, Budget(seconds), options, sub_searches=False)
            if result.bound is None:
                return None
            least[b] = result.bound / scale
            if values is not None:
                self._add(b, values)
        used = prices != 0
        side = np.where(prices > 0, self.lower, self.upper)[used] @ prices[used]
        gives = np.asarray(self.matrix[:, self.y].T @ prices)
        found = Priced(prices, gives, least, float(side + least.sum()))
        self.priced.append(found)
        self.bound = max(self.bound, self._bound(found))
        return found

    def _add(self, block: int, values: FloatArray) -> None:
        """A plan, unless it is known."""
        plan = np.where(self.blocks[block].model.integer, np.round(values), values)
        key = block, np.round(plan, 6).tobytes()
        if key not in self._known:
            self._known.add(key)
            self.plans.append(Plan(block, plan))

    def _least_whole(self, budget: Budget) -> FloatArray | None:
        """The y of the bound with all needs; None when time is up or there is none."""
        model, builder = self.model, LinearBuilder()
        lower, upper = model.lower[self.y], model.upper[self.y]
        y = builder.variables((self.y.size,), lower=lower, upper=upper, cost=model.cost[self.y], integer=True)
        for one in self.priced:
            scale = float(np.abs(one.gives).max(initial=0.0))
            if abs(one.need) >= HUGE * scale:
                continue
            builder.sparse_rows([(one.need - LOOSE * abs(one.need)) / scale], np.inf, (0, y, one.gives / scale))
        by_row = self.matrix.tocsr()
        of_blocks = np.setdiff1d(np.arange(model.num_variables), self.y)
        alone = np.flatnonzero(np.diff(by_row[:, of_blocks].indptr) == 0)
        rows = by_row[alone][:, self.y].tocoo()
        builder.sparse_rows(self.lower[alone], self.upper[alone], (rows.row, y[rows.col], rows.data))
        seconds = max(0.05, budget.remaining_s)
        result, values = solve_linear_mathopt(builder.build(), budget, SolveOptions(time_limit_s=seconds))
        if result.bound is not None:
            self.bound = max(self.bound, model.offset + result.bound)
        return np.round(values) if values is not None and result.status is Status.OPTIMAL else None

    def _master(self, integer: bool) -> tuple[LinearModel, IntArray, IntArray, IntArray]:
        """The master, and its columns: y, shares of the plans, blocks without a plan."""
        model, builder = self.model, LinearBuilder()
        bounds = {"lower": model.lower[self.y], "upper": model.upper[self.y]}
        y = builder.variables((self.y.size,), cost=model.cost[self.y], integer=True, **bounds)
        share = builder.variables((len(self.plans),), integer=True)
        dear = MISSING * max(1.0, abs(self.bound), float(np.abs(model.cost).max()))
        missing = builder.variables((len(self.blocks),), upper=float(not integer), cost=dear * (not integer))
        columns = [self.blocks[plan.block].columns for plan in self.plans]
        place = np.repeat(np.arange(len(columns)), [one.size for one in columns])
        values = np.concatenate([plan.values for plan in self.plans])
        points = csc_matrix((values, (np.concatenate(columns), place)), (model.num_variables, len(columns)))
        given, used = self.matrix[:, self.y].tocoo(), (self.matrix @ points).tocoo()
        builder.sparse_rows(
            self.lower, self.upper, (given.row, y[given.col], given.data), (used.row, share[used.col], used.data)
        )
        of, every = np.array([plan.block for plan in self.plans]), np.arange(len(self.blocks))
        builder.sparse_rows(np.ones(every.size), 1.0, (of, share, 1.0), (every, missing, 1.0))
        built = replace(builder.build(), offset=model.offset)
        return (built if integer else replace(built, integer=np.zeros_like(built.integer))), y, share, missing

    def _relaxed(self, fixed: FloatArray | None, budget: Budget) -> Relaxation | None:
        """The master's relaxation; with a fixed y, how many blocks have no plan there. Its first duals are prices."""
        program, y, _, missing = self._master(False)
        if fixed is not None:
            lower, upper, cost = program.lower.copy(), program.upper.copy(), np.zeros(program.num_variables)
            lower[y] = upper[y] = fixed
            cost[missing] = 1.0
            program = replace(program, lower=lower, upper=upper, cost=cost, offset=0.0)
        found = relax(program, budget.remaining_s)
        return found if isinstance(found, Relaxation) else None

    def combined(self, options: SolveOptions, budget: Budget) -> FloatArray | None:
        """The best whole solution that the known plans make, [n]; None where they make none."""
        if not self.plans:
            return None
        program, y, share, _ = self._master(True)
        _, found = solve_linear_mathopt(program, budget, options)
        if found is None:
            return None
        values = np.zeros(self.model.num_variables)
        values[self.y] = np.round(found[y])
        for place in np.flatnonzero(found[share] > 1 / 2).tolist():
            plan = self.plans[place]
            values[self.blocks[plan.block].columns] = plan.values
        return values

    def onto(self, model: LinearModel) -> LinearModel:
        """A model whose first columns are those of this one, with the needs, and rows of blocks at the best prices."""
        rows: list[tuple[IntArray, FloatArray, float]] = []
        for one in self.priced:
            some = one.gives != 0
            rows.append((self.y[some], one.gives[some], one.need))
        for one in sorted(self.priced, key=self._bound)[-MOST_PRICES:]:
            cost = -(self.matrix.T @ one.prices)
            for block, least in zip(self.blocks, one.least.tolist(), strict=True):
                own = block.columns[cost[block.columns] != 0]
                if least > LOOSE:
                    rows.append((own, cost[own], least))
        # Prices have any scale, rows of a solver had better not.
        scales = [float(np.abs(values).max(initial=0.0)) for _, values, _ in rows]
        rows = [
            (at, one / s, least / s) for (at, one, least), s in zip(rows, scales, strict=True) if abs(least) < HUGE * s
        ]
        first = model.row_lower.size
        least_of = np.array([least - LOOSE * abs(least) for _, _, least in rows])
        return replace(
            model,
            row=np.concatenate([model.row, *(np.full(row[0].size, first + k) for k, row in enumerate(rows))]),
            column=np.concatenate([model.column, *(row[0] for row in rows)]),
            value=np.concatenate([model.value, *(row[1] for row in rows)]),
            row_lower=np.concatenate([model.row_lower, least_of]),
            row_upper=np.concatenate([model.row_upper, np.full(len(rows), np.inf)]),
        )

    def _signed(self, prices: FloatArray) -> FloatArray:
        """Prices of the sign that their rows have."""
        prices = np.where(np.isinf(self.upper), np.maximum(prices, 0.0), prices)
        return np.where(np.isinf(self.lower), np.minimum(prices, 0.0), prices)


def _block(model: LinearModel, matrix: csr_matrix, columns: IntArray, rows: IntArray) -> Block:
    part = matrix[rows][:, columns].tocoo()
    order = np.lexsort((part.col, part.row))
    return Block(
        columns,
        LinearModel(
            cost=model.cost[columns],
            lower=model.lower[columns],
            upper=model.upper[columns],
            integer=model.integer[columns],
            row=part.row[order].astype(np.int64),
            column=part.col[order].astype(np.int64),
            value=part.data[order],
            row_lower=model.row_lower[rows],
            row_upper=model.row_upper[rows],
        ),
    )
