"""Prompts -> tokens: the loops, their caches, and what the checkpoint says of choosing a token."""
