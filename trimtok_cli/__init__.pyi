from trimtok_cli.data import Result as Result
from trimtok_cli.data import Sample as Sample
from trimtok_cli.engine.answer import answer as answer
from trimtok_cli.engine.own_loop import pruned as pruned
from trimtok_cli.engine.stream import answer_all as answer_all
from trimtok_cli.errors import TrimtokError as TrimtokError
from trimtok_cli.evaluation.compare import compare_all as compare_all
from trimtok_cli.models.loading import load_model as load_model
from trimtok_cli.prepare.sample import Ask as Ask
from trimtok_cli.pruners.methods.trimtokenator import TrimTokenator as TrimTokenator
from trimtok_cli.pruners.methods.trimtokenator import trimtokenator as trimtokenator
from trimtok_cli.pruners.registry import build_pruner as build_pruner

__version__: str
