"""The drawings of a plan, by kind: from the plan document and the arrays of its instance to `planner.reporting`."""
