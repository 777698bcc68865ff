"""What training costs: step time and memory of many plans at once."""
