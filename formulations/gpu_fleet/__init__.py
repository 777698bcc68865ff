"""GPU fleet: the cheapest instances that serve a demand within its SLO."""
