"""The figure: prepare, encode, prune, generate; samples in, results out."""
