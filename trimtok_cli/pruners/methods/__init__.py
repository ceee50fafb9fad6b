"""The methods: one file a paper, and the baselines. This list is the one place that names them all.

README.md beside this file says what a method's file has. Knows no model.
"""

from trimtok_cli.pruners.base import Pruner
from trimtok_cli.pruners.methods.baselines import Random, Uniform
from trimtok_cli.pruners.methods.cdpruner import CDPruner
from trimtok_cli.pruners.methods.divprune import DivPrune, DivPruneStar
from trimtok_cli.pruners.methods.fastv import FastV
from trimtok_cli.pruners.methods.prumerge import PruMerge
from trimtok_cli.pruners.methods.pyramiddrop import PyramidDrop
from trimtok_cli.pruners.methods.sparsevlm import SparseVLM
from trimtok_cli.pruners.methods.tome import ToMe, ToMeProjected
from trimtok_cli.pruners.methods.trimtokenator import TrimTokenator
from trimtok_cli.pruners.methods.visionzip import VisionZip
from trimtok_cli.pruners.methods.vispruner import VisPruner
from trimtok_cli.pruners.methods.vtw import VTW

# In the order in which `trimtok methods` lists them.
METHODS: tuple[type[Pruner], ...] = (
    TrimTokenator,
    DivPrune,
    DivPruneStar,
    CDPruner,
    VisionZip,
    VisPruner,
    PruMerge,
    ToMe,
    ToMeProjected,
    FastV,
    SparseVLM,
    PyramidDrop,
    VTW,
    Random,
    Uniform,
)
