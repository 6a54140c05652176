"""Numbers as a reader sees them."""

import math

from rlhf_ppo.report.folder import Estimate

MINUS = "\u2212"
DASH = "\u2013"  # where there is no number
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def shown(value: float) -> str:
    """Two decimals where the size allows it, three figures of what is smaller; a dash for none.

    3 is 3.00 beside 3.58; -6.36e-04 is -0.0006. Below 0.00001 and from a million on a power of ten.
    """
    if not math.isfinite(value):
        return DASH
    size = abs(value)
    if size and not 1e-5 <= size < 1e6:
        digits, _, power = f"{value:.1e}".partition("e")
        raised = str(int(power)).translate(RAISED)
        return f"{digits}·10{raised}".replace("-", MINUS)
    if size < 0.1 and size:
        decimals = 3 if size >= 1e-3 else 4 if size >= 1e-4 else 5
    else:
        decimals = 0 if size >= 1000 else 1 if size >= 100 else 2
    return f"{value:.{decimals}f}".replace("-", MINUS)


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


def p_value(p: float) -> str:
    """Of a test, as in "p = .031"."""
    if not math.isfinite(p):
        return f"p {DASH}"
    decimals = 2 if p >= 0.1 else 3
    return "p < .001" if p < 0.001 else f"p = {p:.{decimals}f}".replace("0.", ".", 1)
