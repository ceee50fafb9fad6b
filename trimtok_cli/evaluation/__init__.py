"""Many answers to one question: comparisons, sweeps and grids, their statistics and scores."""
