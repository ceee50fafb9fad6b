"""`trimtok bench`: what dense and pruned runs cost, measured and compared."""
