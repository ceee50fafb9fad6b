"""Prompts -> tokens: the loops, their caches, and the rules that choose a token."""
