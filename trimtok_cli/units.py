"""Durations, shares and paces as people read them."""


def duration(seconds: float) -> str:
    """Seconds as `12.3 s`, `1.23 s`, `123 ms` or `12.3 ms`."""
    if seconds >= 0.9995:
        return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s"
    return f"{seconds * 1000:.1f} ms" if seconds < 0.09995 else f"{seconds * 1000:.0f} ms"


def percent(share: float) -> str:
    """A share of 1 as `12 %`."""
    return f"{share * 100:.0f} %"


def pace(speedup: float | None) -> str:
    """A speed against dense, in words; "" where it was not measured (None)."""
    if speedup is None:
        return ""
    if 0.95 < speedup < 1.05:
        return "as fast as dense"
    return f"{speedup:.1f}× faster" if speedup > 1 else f"{1 / speedup:.1f}× slower"
