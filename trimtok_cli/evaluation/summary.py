"""The summary of a comparison: a Row for each setting.

Pure functions on Comparisons; the page and the terminal table show the same Rows. Knows no model,
no page and no terminal.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields
from statistics import fmean, median
from typing import Any

from trimtok_cli.data import Comparison, Result, Seconds, Setting
from trimtok_cli.evaluation.proportion import Share, wilson
from trimtok_cli.evaluation.words import agreement

TIMES = tuple(field.name for field in fields(Seconds))


@dataclass(frozen=True, slots=True)
class Medians:
    """Medians over samples.

    `total` is the median of whole samples, which is not the sum of the medians in `seconds`.
    `layer_mean` is the visual tokens averaged over the decoder layers; `stages` holds the layer of
    each stage and the tokens left after it.
    """

    visual: int
    kept: int
    generated: int
    seconds: Seconds
    total: float
    layer_mean: float = 0.0
    stages: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """One setting over the `samples` that both it and dense answered.

    `median` holds the setting's medians, `dense` those of dense over the same samples. `same`
    answers are identical to dense's; `agreement` is the mean share of words in common. `referenced`
    samples have references, and `matched` of them were answered with one: `lost` are those that
    dense alone matched, `gained` those that this setting alone matched. The first Row is dense
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
    lost: int = 0
    gained: int = 0

    @property
    def label(self) -> str:
        return self.setting.name

    @property
    def same_share(self) -> Share:
        return wilson(self.same / self.samples if self.samples else 0.0, self.samples)

    @property
    def agreement_share(self) -> Share:
        return wilson(self.agreement, self.samples)

    @property
    def matched_share(self) -> Share:
        share = self.matched / self.referenced if self.referenced else 0.0
        return wilson(share, self.referenced)

    @property
    def p(self) -> float:
        """The p value of McNemar's exact test of as many matches as dense."""
        from trimtok_cli.evaluation.statistics import mcnemar  # numpy: not for `--help`

        return mcnemar(self.gained, self.lost)

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
        referenced = [pair for pair in pairs if pair[1].sample.answers]
        matches = [(is_match(dense), is_match(result)) for dense, result in referenced]
        rows.append(
            Row(
                setting=setting,
                samples=len(pairs),
                failed=len(comparisons) - len(pairs),
                same=sum(is_same(*pair) for pair in pairs),
                agreement=fmean(agreement(dense.answer, result.answer) for dense, result in pairs)
                if pairs
                else 0.0,
                matched=sum(now for _, now in matches),
                referenced=len(referenced),
                median=_medians([result for _, result in pairs]),
                dense=_medians([dense for dense, _ in pairs]),
                lost=sum(was and not now for was, now in matches),
                gained=sum(now and not was for was, now in matches),
            )
        )
    return rows


def figures(row: Row) -> dict[str, Any]:
    """The row as plain values under names that say their units, for CSV and JSON."""
    now = row.median
    found: dict[str, Any] = {
        "setting": row.label,
        "method": row.setting.method,
        "keep": row.setting.keep,
        "changes": row.setting.changes,
        "samples": row.samples,
        "failed": row.failed,
    }
    if not row.samples:
        return found
    found |= {
        "visual_tokens": now.visual,
        "kept": now.kept,
        "layer_mean": round(now.layer_mean, 3),
        "stages": [list(stage) for stage in now.stages],
        "same": row.same,
        **_share("same", row.same_share),
        "words_in_common": round(row.agreement, 4),
    }
    if row.referenced:
        found |= {
            "referenced": row.referenced,
            "matched": row.matched,
            **_share("matched", row.matched_share),
            "lost": row.lost,
            "gained": row.gained,
            "p": round(row.p, 4),
        }
    times = {f"{name}_ms": round(1000 * getattr(now.seconds, name), 3) for name in TIMES}
    return found | times | {"total_ms": round(1000 * now.total, 3), "generated": now.generated}


def groups(comparisons: Sequence[Comparison], most: int = 12) -> dict[str, dict[str, list[Row]]]:
    """The rows of each value of each further column that tells at least two samples apart.

    Columns of 2 to `most` different plain values, not each of its own, are taken.
    """
    columns: dict[str, dict[str, list[Comparison]]] = defaultdict(lambda: defaultdict(list))
    for comparison in comparisons:
        for name, value in comparison.sample.extra.items():
            plain = isinstance(value, (str, int, float)) and value not in comparison.sample.answers
            if plain:
                columns[name][str(value)].append(comparison)
    return {
        name: {value: summarize(group) for value, group in sorted(values.items())}
        for name, values in columns.items()
        if 2 <= len(values) <= most and len(values) < sum(map(len, values.values()))
    }


def is_same(dense: Result, pruned: Result) -> bool:
    """Whether two answers are identical but for spaces around them."""
    return dense.answer.strip() == pruned.answer.strip()


def is_match(result: Result) -> bool:
    """Whether the answer is a reference, but for case, spaces around it and a final period."""
    return _normalised(result.answer) in {_normalised(text) for text in result.sample.answers}


def _medians(results: Sequence[Result]) -> Medians:
    if not results:
        return Medians(0, 0, 0, Seconds(), 0.0)

    def count(name: str) -> int:
        return round(median(getattr(result.tokens, name) for result in results))

    left = defaultdict(list)
    for result in results:
        for layer, tokens in result.tokens.stages:
            left[layer].append(tokens)
    times = {name: median(getattr(r.seconds, name) for r in results) for name in TIMES}
    return Medians(
        visual=count("visual"),
        kept=count("kept"),
        generated=count("generated"),
        seconds=Seconds(**times),
        total=median(result.seconds.total for result in results),
        layer_mean=median(result.tokens.layer_mean for result in results),
        stages=tuple((layer, round(median(tokens))) for layer, tokens in sorted(left.items())),
    )


def _share(name: str, share: Share) -> dict[str, float]:
    ends = {"share": share.value, "low": share.low, "high": share.high}
    return {f"{name}_{end}": round(value, 4) for end, value in ends.items()}


def _ratio(was: float, now: float) -> float | None:
    return was / now if was > 0 and now > 0 else None


def _normalised(text: str) -> str:
    return text.casefold().strip().removesuffix(".").strip()
