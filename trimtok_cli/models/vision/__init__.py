"""The vision tower: which samples share a run, the run itself, its signals, its token layout."""
