"""The summary of a comparison: a Row for each setting, and one sentence on where the time goes.

Pure functions on Comparisons; the page and the terminal table show the same Rows. Knows no model,
no page and no terminal.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from statistics import fmean, median

from trimtok_cli.data import Comparison, Result, Seconds, Setting
from trimtok_cli.units import duration, pace, percent

STAGES = {
    "load": "reading the file",
    "prepare": "preparing the image",
    "encode": "the vision tower",
    "prune": "pruning",
    "prefill": "prefill",
    "decode": "decode",
}


@dataclass(frozen=True, slots=True)
class Medians:
    """Medians over samples.

    `total` is the median of whole samples, which is not the sum of the medians in `seconds`.
    """

    visual: int
    kept: int
    generated: int
    seconds: Seconds
    total: float


@dataclass(frozen=True, slots=True)
class Row:
    """One setting over the `samples` that both it and dense answered.

    `median` holds the setting's medians, `dense` those of dense over the same samples. `same`
    answers are identical to dense's; `agreement` is the mean share of words in common. `referenced`
    samples have references, and `matched` of them were answered with one. The first Row is dense
    itself.
    """

    setting: Setting
    samples: int
    failed: int
    same: int
    agreement: float
    matched: int
    referenced: int
    median: Medians
    dense: Medians

    @property
    def label(self) -> str:
        return self.setting.name

    @property
    def prefill_speedup(self) -> float | None:
        """How many times faster than dense; None where one of the two was not timed."""
        return _ratio(self.dense.seconds.prefill, self.median.seconds.prefill)

    @property
    def total_speedup(self) -> float | None:
        return _ratio(self.dense.total, self.median.total)


def summarize(comparisons: Sequence[Comparison]) -> list[Row]:
    """One Row per position in `Comparison.results`, dense first."""
    rows = []
    for i in range(max((len(comparison.results) for comparison in comparisons), default=0)):
        pairs = [(c.results[0], c.results[i]) for c in comparisons if len(c.results) > i]
        setting = pairs[0][1].setting
        pairs = [(dense, result) for dense, result in pairs if not dense.error and not result.error]
        referenced = [result for _, result in pairs if result.sample.answers]
        rows.append(
            Row(
                setting=setting,
                samples=len(pairs),
                failed=len(comparisons) - len(pairs),
                same=sum(is_same(*pair) for pair in pairs),
                agreement=fmean(agreement(*pair) for pair in pairs) if pairs else 0.0,
                matched=sum(is_match(result) for result in referenced),
                referenced=len(referenced),
                median=_medians([result for _, result in pairs]),
                dense=_medians([dense for dense, _ in pairs]),
            )
        )
    return rows


def explain(rows: Sequence[Row]) -> str:
    """One sentence on where the time goes, for the setting that keeps the fewest visual tokens."""
    pruned = [row for row in rows[1:] if row.samples]
    if not pruned:
        now = rows[0].median if rows and rows[0].samples else None
        if now is None or not now.total:
            return "No sample was answered both dense and pruned, so there is nothing to compare."
        stage, share = _shares(now)[0]
        return (
            f"Only dense answered: {duration(now.total)} a sample, {percent(share)} of it "
            f"{STAGES[stage]}."
        )
    row = min(pruned, key=lambda row: row.median.kept)
    head = f"With {row.median.kept} of {row.median.visual} visual tokens"
    if row.total_speedup is None:
        return (
            f"{head} {row.same} of {row.samples} answers are identical to dense; the time "
            "was not measured."
        )
    prefill, whole = pace(row.prefill_speedup), pace(row.total_speedup)
    paces = (
        f"prefill is {prefill}, the whole sample {whole}"
        if prefill
        else f"the whole sample is {whole}"
    )
    if prefill == whole:
        paces = f"prefill and the whole sample are {whole}"
    return f"{head} {paces}: {_reason(row)}."


def _reason(row: Row) -> str:
    """Why the whole sample gained no more, or lost."""
    speedup = row.total_speedup or 1.0
    now, was, shares = row.median.seconds, row.dense.seconds, _shares(row.median)
    grown = {stage: getattr(now, stage) - getattr(was, stage) for stage in STAGES}
    worst, saved = max(grown, key=grown.__getitem__), -grown["prefill"]
    if speedup < 1.05 and worst == "prune" and now.prune > saved / 2:
        return (
            f"pruning takes {duration(now.prune)} and prefill saves "
            f"{duration(saved) if saved > 0 else 'nothing'}"
        )
    if speedup < 0.95 and grown[worst] > 0:
        length = (
            f", for {row.median.generated} tokens instead of {row.dense.generated}"
            if worst == "decode"
            else ""
        )
        return (
            f"{STAGES[worst]} takes {duration(getattr(now, worst))} instead of "
            f"{duration(getattr(was, worst))}{length}"
        )
    steady = [
        (s, part)
        for s, part in shares
        if part >= 0.1 and s not in ("prune", "prefill") and abs(grown[s]) <= 0.1 * getattr(now, s)
    ]
    stage, share = shares[0]
    if shares[0] not in steady or (stage == "decode" and share >= 0.5):
        shorter = (
            ", so shorter answers would gain more"
            if stage == "decode" and row.median.generated > 3
            else ""
        )
        return f"{STAGES[stage]} is {percent(share)} of what is left{shorter}"
    *parts, last = [f"{STAGES[s]} ({percent(part)})" for s, part in steady]
    return (
        f"{', '.join(parts)} and {last} take as long as before"
        if parts
        else f"{last} takes as long as before"
    )


def is_same(dense: Result, pruned: Result) -> bool:
    """Whether two answers are identical but for spaces around them."""
    return dense.answer.strip() == pruned.answer.strip()


def is_match(result: Result) -> bool:
    """Whether the answer is a reference, but for case, spaces around it and a final period."""
    return _normalised(result.answer) in {_normalised(text) for text in result.sample.answers}


def agreement(dense: Result, pruned: Result) -> float:
    """The share of words in common, in order, in [0, 1]."""
    return SequenceMatcher(
        None, dense.answer.split(), pruned.answer.split(), autojunk=False
    ).ratio()


def _medians(results: Sequence[Result]) -> Medians:
    if not results:
        return Medians(0, 0, 0, Seconds(), 0.0)

    def count(name: str) -> int:
        return round(median(getattr(result.tokens, name) for result in results))

    stages = {stage: median(getattr(r.seconds, stage) for r in results) for stage in STAGES}
    return Medians(
        visual=count("visual"),
        kept=count("kept"),
        generated=count("generated"),
        seconds=Seconds(**stages),
        total=median(result.seconds.total for result in results),
    )


def _shares(medians: Medians) -> list[tuple[str, float]]:
    """Each stage's share of the whole sample, largest first."""
    return sorted(
        ((s, getattr(medians.seconds, s) / medians.total) for s in STAGES),
        key=lambda pair: -pair[1],
    )


def _ratio(was: float, now: float) -> float | None:
    return was / now if was > 0 and now > 0 else None


def _normalised(text: str) -> str:
    return text.casefold().strip().removesuffix(".").strip()
