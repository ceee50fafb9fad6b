"""Checkpoints: found, looked at, loaded, and asked. One file a family in families/."""
