"""The vision tower and the language model in two threads at once: neither notices the other."""

import threading

import pytest
import torch

from tests.conftest import picture
from tests.support import tiny
from tests.support.families import FAMILIES
from tests.support.generating import generate
from trimtok_cli.models.loading import load_model

STEPS = 3


@pytest.fixture(scope="module", params=["llava", *FAMILIES])
def family(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("threads") / request.param
    return load_model(str(FAMILIES.get(request.param, tiny.llava)(folder)), device="cpu")


def test_the_tower_runs_while_the_language_model_answers(family):
    """Both go on until each has run often enough beside the other, and every result is bit-equal
    to that of a quiet process.
    """
    inputs = [family.prepare([picture(i, 100, 80)], "What?") for i in range(2)]

    @torch.inference_mode()
    def encoded():
        tokens = family.encode_many(inputs)
        saliency = [each.signals.saliency for each in tokens if each.signals.offers("saliency")]
        return [each.embeds for each in tokens] + saliency

    with torch.inference_mode():
        prompts = [
            family.embed(*pair) for pair in zip(inputs, family.encode_many(inputs), strict=True)
        ]

    def answered():
        answers, _ = generate(family, prompts, max_new_tokens=STEPS, stop=False, keep_logits=True)
        return [answer.logits for answer in answers]

    quiet = {encoded: encoded(), answered: answered()}
    busy, problems, runs = threading.Event(), [], {encoded: 0, answered: 0}

    def again(work) -> None:
        while not busy.is_set():
            try:
                found = work()
            except BaseException as error:
                problems.append(error)
                busy.set()
                return
            if not all(map(torch.equal, found, quiet[work])):
                problems.append(work)
                busy.set()
            runs[work] += 1
            if min(runs.values()) >= 25:
                busy.set()

    threads = [threading.Thread(target=again, args=(work,)) for work in quiet]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert not problems and min(runs.values()) >= 25
