"""Pruning methods as values: what they are given, what they return, and a name for each.

A method is one file in methods/ and one line in registry.py. Knows no model.
"""

from trimtok_cli.pruners.base import Pruner, ScoringPruner, Stage
from trimtok_cli.pruners.budget import Budget, parse_budget
from trimtok_cli.pruners.registry import PRUNERS, build_pruner

__all__ = ["PRUNERS", "Budget", "Pruner", "ScoringPruner", "Stage", "build_pruner", "parse_budget"]
