"""Kubernetes as the scheduler sees it: quantities, selectors and taints, and a snapshot of nodes and pods."""
