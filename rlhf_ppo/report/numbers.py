"""Numbers as a reader sees them."""

import math

from rlhf_ppo.report.folder import Estimate

MINUS = "\u2212"
DASH = "\u2013"  # where there is no number


def shown(value: float) -> str:
    """Three significant figures or so; a dash where there is no number."""
    if not math.isfinite(value):
        return DASH
    size = abs(value)
    if size and not 1e-3 <= size < 1e6:
        return f"{value:.2e}".replace("-", MINUS)
    decimals = 0 if size >= 1000 else 1 if size >= 10 else 2 if size >= 0.1 else 3
    return f"{value:.{0 if value == 0 else decimals}f}".replace("-", MINUS)


def signed(value: float) -> str:
    """With its sign."""
    return f"+{shown(value)}" if value > 0 else shown(value)


def interval(found: Estimate) -> str:
    """Mean and 95 % interval."""
    if not (math.isfinite(found.low) and math.isfinite(found.high)):
        return shown(found.mean)
    size = max(abs(found.mean), abs(found.low), abs(found.high))
    decimals = 0 if size >= 1000 else 1 if size >= 10 else 2 if size >= 1 else 3
    low, mean, high = (
        f"{value:.{decimals}f}".replace("-", MINUS) for value in (found.low, found.mean, found.high)
    )
    return f"{mean} [{low},\u00a0{high}]"  # no line break inside the brackets


def percent(value: float) -> str:
    """A share."""
    return f"{100 * value:.1f} %" if math.isfinite(value) else DASH


def duration(seconds: float) -> str:
    """Hours, minutes and seconds."""
    if not math.isfinite(seconds):
        return DASH
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
