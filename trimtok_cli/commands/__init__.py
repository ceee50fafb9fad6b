"""The commands: options become a RunConfig, the RunConfig becomes calls.

Nothing heavy is imported before a command runs.
"""
