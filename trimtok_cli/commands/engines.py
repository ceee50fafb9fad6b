"""The engines of --engine beside trimtok's own: what is checked early, and how each one starts."""

from typing import Any

from trimtok_cli.commands.terminal.progress import Screen
from trimtok_cli.config import RunConfig
from trimtok_cli.errors import UsageError


def check_engine(config: RunConfig) -> None:
    """Raises UsageError, before a model is looked for, for an engine that cannot be had."""
    if config.engine != "vllm":
        if config.vllm_args:
            raise UsageError("--vllm-args is for --engine vllm: add that, or leave it out.")
        return
    if config.decode != "continuous":
        raise UsageError(
            f"--decode {config.decode} is a loop of --engine local: leave one of them out."
        )
    from trimtok_cli.on_vllm.options import check_options
    from trimtok_cli.on_vllm.versions import check_version

    check_version()
    check_options(config.vllm_args)


def start_vllm(config: RunConfig, adapter: Any, pruner: Any, ask: Any, screen: Screen) -> Any:
    """vLLM with the language model of an adapter. Raises ModelError for what it cannot do."""
    from trimtok_cli.engine.loops import rules_for
    from trimtok_cli.on_vllm.engine import Engine, check
    from trimtok_cli.on_vllm.versions import vllm_version

    rules = rules_for(adapter, ask)
    check(adapter, pruner, rules)
    screen.say(f"starting vLLM {vllm_version()} ...", "dim")
    if rules.samples:
        screen.say("vLLM draws samples of its own: other answers than --engine local's", "dim")
    return Engine(adapter, batch_limit=config.batch_limit, given=config.vllm_args)
