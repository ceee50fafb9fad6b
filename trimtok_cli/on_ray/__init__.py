"""Replicas of a run on a Ray cluster: a process each, on whichever node Ray has room for it."""
