"""One file for each model family; README.md says how to add one."""
