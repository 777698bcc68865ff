"""Machines of two NUMA nodes: VMs moved so that fewer free cores are fragments."""
