"""Several processes that answer the samples of one run, each with a model of its own."""
