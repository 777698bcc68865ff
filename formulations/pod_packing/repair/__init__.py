"""Running clusters: columns of pods removed from and added to a node, within a budget of moves."""
