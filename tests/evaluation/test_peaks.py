"""In a comparison each setting has a peak of memory of its own, whichever ran before it."""

from dataclasses import replace

from trimtok_cli.data import Sample
from trimtok_cli.evaluation import compare
from trimtok_cli.pruners.registry import build_pruner


def test_a_setting_s_peak_is_its_own_or_the_tower_s(adapter, pictures, monkeypatch):
    from trimtok_cli.prepare.sample import Ask

    taken = {"peak": 0}
    cost = {"tower": 30, "dense": 100, "uniform@4": 20}
    real = compare.finish

    def finish(adapter, pruner, encoded, loop):
        name = "dense" if pruner is None else pruner.setting.name
        taken["peak"] = max(taken["peak"], cost[name])
        return [replace(r, peak_bytes=taken["peak"]) for r in real(adapter, pruner, encoded, loop)]

    def peak_bytes(device):
        taken["peak"] = max(taken["peak"], cost["tower"])  # asked for once, after the tower
        return taken["peak"]

    monkeypatch.setattr(compare, "reset_peak", lambda device: taken.update(peak=0))
    monkeypatch.setattr(compare, "peak_bytes", peak_bytes)
    monkeypatch.setattr(compare, "finish", finish)
    pruners = [None, build_pruner("uniform", {"keep": 4})]
    samples = [Sample(n, (path,)) for n, path in enumerate(pictures[:3])]
    found = list(compare.compare_all(adapter, pruners, samples, Ask(max_new_tokens=3)))
    assert [[r.peak_bytes for r in each.results] for each in found] == [[100, 30]] * 3


def test_no_time_that_is_shown_is_that_of_the_first_pass(adapter, pictures, monkeypatch):
    """The libraries' first call, for a file or for the tower, is no part of any sample's time."""
    from trimtok_cli.data import Seconds
    from trimtok_cli.prepare.sample import Ask

    passed, real, encoding = [], compare.prepare, compare.encode

    def prepare(preprocessor, sample, ask):
        passed.append("prepare")
        return replace(real(preprocessor, sample, ask), seconds=Seconds(load=len(passed)))

    def encode(*given, **named):
        passed.append("encode")
        return encoding(*given, **named)

    monkeypatch.setattr(compare, "prepare", prepare)
    monkeypatch.setattr(compare, "encode", encode)
    samples = [Sample(n, (path,)) for n, path in enumerate(pictures[:2])]
    first, second = compare.compare_all(adapter, [None], samples, Ask(max_new_tokens=2))
    assert passed[0] == "prepare" and first.results[0].seconds.load > 1
    assert passed[int(first.results[0].seconds.load) :] == ["encode", "prepare", "encode"]
    assert second.results[0].seconds.load == len(passed) - 1
