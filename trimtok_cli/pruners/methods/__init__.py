"""One file a paper, and the baselines."""
