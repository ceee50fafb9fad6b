"""Pruning methods as values: the stage they are given, the choice they return, and their names.

A method is one file in methods/, listed in methods/__init__.py. Knows no model.
"""

from trimtok_cli.pruners.base import Pruner, ScoringPruner, Stage
from trimtok_cli.pruners.budget import Budget, parse_budget
from trimtok_cli.pruners.registry import PRUNERS, build_pruner

__all__ = ["PRUNERS", "Budget", "Pruner", "ScoringPruner", "Stage", "build_pruner", "parse_budget"]
