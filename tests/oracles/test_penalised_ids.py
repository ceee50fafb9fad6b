"""Penalties look at the dense prompt's ids, whichever tokens a method drops, and wherever."""

import json
import sys
from pathlib import Path

import pytest

from tests.conftest import picture
from trimtok_cli.cli import main
from trimtok_cli.generation import rules

METHODS = ["fastv", "sparsevlm", "pyramiddrop", "vtw", "trimtokenator"]


def test_every_method_of_a_comparison_penalises_the_ids_of_the_dense_prompt(
    llava_folder, monkeypatch
):
    for i in range(3):
        picture(i, 90, 60 + 10 * i).save(f"{i}.png")
    rows = [
        ("a <image> b <image> c?", ["0.png", "1.png"]),
        ("What is it, exactly?", ["2.png"]),
        ("How many?", ["0.png", "2.png", "1.png"]),
    ]
    Path("q.jsonl").write_text(
        "".join(
            json.dumps({"question_id": i, "text": text, "image": names}) + "\n"
            for i, (text, names) in enumerate(rows)
        )
    )
    seen: dict[tuple[int, ...], set[int]] = {}
    answer = rules.Rules.answer

    def watched(self, prompt):
        found = answer(self, prompt)
        assert [type(each).__name__ for each in found.processors] == [
            "RepetitionPenaltyLogitsProcessor"
        ]
        seen.setdefault(tuple(found.prompt.tolist()), set()).add(len(prompt))
        return found

    monkeypatch.setattr(rules.Rules, "answer", watched)
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "trimtok",
            "compare",
            "q.jsonl",
            "-m",
            str(llava_folder),
            "--keep",
            "4",
            "--methods",
            ",".join(METHODS),
            "-q",
            "--max-new-tokens",
            "3",
            "--repetition-penalty",
            "1.5",
            "-o",
            "out",
        ],
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert len(seen) == len(rows), "one list of ids a question, of whichever method"
    for ids, lengths in seen.items():
        assert max(lengths) == len(ids) and len(lengths) > 1, (
            "some methods hand over fewer rows than the prompt has ids"
        )
