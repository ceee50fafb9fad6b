"""vLLM's engine for a run: what is refused before it starts, how it starts, and its loops.

The vision tower, the projector and the embeddings are trimtok's own; vLLM loads the language model
of the same checkpoint. vLLM is imported when the engine starts.
"""

from collections.abc import Mapping
from typing import Any

import torch

from trimtok_cli.engine.loops import prunes_in_decoder
from trimtok_cli.errors import ModelError, sentence
from trimtok_cli.generation.rules import Rules
from trimtok_cli.models.adapter import Adapter
from trimtok_cli.on_vllm.loop import Shape, VllmLoop
from trimtok_cli.on_vllm.options import check_options, options_for, prepare_environment
from trimtok_cli.on_vllm.plugin import PLAIN_PROMPTS, WHOLE_PROMPTS
from trimtok_cli.on_vllm.rules import check_rules, sampling_of
from trimtok_cli.on_vllm.versions import check_version
from trimtok_cli.pruners.base import Pruner
from trimtok_cli.tokens import Prompt

LOCAL = "use --engine local"


def check(adapter: Adapter, pruner: Pruner | None, rules: Rules) -> None:
    """Raises ModelError, before the run, for what vLLM cannot do as trimtok's own loops do."""
    if prunes_in_decoder(adapter, pruner):
        raise ModelError(
            "--engine vllm: the method prunes inside the decoder, whose layers are vLLM's: choose "
            f"a --method that prunes the prompt, or {LOCAL}."
        )
    if adapter.deepstack_layers:
        raise ModelError(
            f"--engine vllm: {adapter.name} adds features of its images behind its first layers "
            f"(deepstack), which vLLM takes from its own tower alone: {LOCAL}."
        )
    if not adapter.plain_prefill:
        raise ModelError(
            f"--engine vllm: in {adapter.name} the rows of an image see each other in both "
            f"directions, and vLLM reads rows in one: {LOCAL}."
        )
    known = PLAIN_PROMPTS if adapter.renumbers else tuple(WHOLE_PROMPTS)
    if architecture(adapter) not in known:
        raise ModelError(
            f"--engine vllm: {adapter.name} is a {architecture(adapter)}, which was not tested "
            f"with vLLM (tested are {', '.join((*PLAIN_PROMPTS, *WHOLE_PROMPTS))}): {LOCAL}."
        )
    if adapter.device.type not in ("cpu", "cuda"):
        raise ModelError(f"--engine vllm runs on cuda or cpu, not on {adapter.device}: {LOCAL}.")
    check_rules(rules)


def architecture(adapter: Adapter) -> str:
    """The class that vLLM knows the checkpoint by."""
    names = adapter.model.config.architectures or [type(adapter.model).__name__]
    return str(names[0])


class Engine:
    """A started vLLM that holds the language model of an adapter. Raises ModelError.

    batch_limit: the most answers at once; None is vLLM's own number. given: --vllm-args.
    """

    def __init__(
        self,
        adapter: Adapter,
        *,
        batch_limit: int | None,
        given: Mapping[str, Any],
    ) -> None:
        self.version = check_version()
        check_options(given)
        self.adapter, self.whole_prompts = adapter, not adapter.renumbers
        options = options_for(
            adapter.device.type,
            str(adapter.dtype).removeprefix("torch."),
            adapter.num_positions,
            whole_prompts=self.whole_prompts,
            batch_limit=batch_limit,
            given=given,
        )
        if self.whole_prompts:
            options["hf_overrides"] = {"architectures": [WHOLE_PROMPTS[architecture(adapter)]]}
        try:
            self.llm = self._started(options)
            config = self.llm.llm_engine.vllm_config
            length = int(config.model_config.max_model_len)
            positions = adapter.num_positions
            short = positions is None or length <= positions
            self.shape = Shape(width=int(adapter.config.hidden_size), length=length, short=short)
            self._warm()
        except Exception as error:
            raise ModelError(
                f"vLLM {self.version} does not start with {adapter.name}: "
                f"{sentence(error).rstrip('.')}; --vllm-args max_model_len=4096 or "
                "gpu_memory_utilization may make it fit, and --engine local runs without it."
            ) from error
        self.batch_limit = int(config.scheduler_config.max_num_seqs)

    def _started(self, options: Mapping[str, Any]) -> Any:
        prepare_environment()
        from vllm import LLM

        from trimtok_cli.on_vllm.plugin import register

        register()  # where trimtok runs without being installed, there is no entry point
        return LLM(str(self.adapter.folder), use_tqdm_on_load=False, **options)

    def _warm(self) -> None:
        """Runs a request of one row: what vLLM does once is no part of any answer's time."""
        from vllm import SamplingParams

        core = self.llm.llm_engine
        rows = torch.zeros(1, self.shape.width, dtype=self.adapter.dtype)
        none = torch.empty(0, dtype=torch.long)
        positions = torch.zeros(3, 1, dtype=torch.long) if self.whole_prompts else none
        prompt = Prompt(rows, positions, none, none, none)
        core.add_request("warm", self.as_input(prompt), SamplingParams(max_tokens=2, logprobs=0))
        while core.has_unfinished_requests():
            core.step()

    @property
    def facts(self) -> dict[str, str]:
        """The engine's name and version, for run.json."""
        return {"name": "vllm", "version": self.version}

    def loop(
        self,
        adapter: Adapter,
        pruner: Pruner | None,
        rules: Rules,
        *,
        decode: str = "continuous",
        batch_limit: int | None = None,
        keep_logits: bool = False,
    ) -> VllmLoop:
        """The token loop of a run, as `loop_for` makes trimtok's own. Raises ModelError."""
        check(adapter, pruner, rules)
        if keep_logits:
            raise ModelError(f"--engine vllm records no logits: {LOCAL}.")
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        def params(prompt: Prompt) -> Any:
            return SamplingParams(**sampling_of(rules, prompt), output_kind=RequestOutputKind.DELTA)

        return VllmLoop(
            self.llm.llm_engine,
            rules,
            shape=self.shape,
            batch_limit=self.batch_limit,
            as_input=self.as_input,
            params=params,
            mend=self.mend,
        )

    def as_input(self, prompt: Prompt) -> dict[str, Any]:
        """A prompt in vLLM's form: its rows, with their positions where these are not plain."""
        if not self.whole_prompts:
            return {"prompt_embeds": prompt.embeds.cpu()}
        item = {"rows": prompt.embeds.cpu()[None], "positions": prompt.positions.cpu()[None]}
        return {
            "prompt_token_ids": [self.adapter.model.config.image_token_id],
            "multi_modal_data": {"image": item},
        }

    def mend(self) -> None:
        """Clears what is no number out of vLLM's cache, whose blocks other prompts are given."""
        self.llm.llm_engine.collective_rpc(cleared)

    def close(self) -> None:
        """Ends the engine and lets go of its memory."""
        self.llm.llm_engine.engine_core.shutdown()


def cleared(worker: Any) -> None:
    """In a worker of vLLM: NaN and infinity in its cache become 0."""
    for cache in worker.model_runner.kv_caches:
        torch.nan_to_num_(cache, nan=0.0, posinf=0.0, neginf=0.0)
