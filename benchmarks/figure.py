"""The curves of the chosen runs as one page: held-out J against each of the three costs."""

from collections.abc import Mapping
from pathlib import Path

from markupsafe import Markup
from table import COSTS, Runs, mean_curve

import rlhf_ppo.report
from rlhf_ppo.evaluation.statistics import t_interval
from rlhf_ppo.report.charts import Line, line_chart

LABELS = dict(zip(COSTS, ("optimizer steps", "sampled tokens", "CPU seconds"), strict=True))


def draw(chosen: Mapping[str, Runs], file: Path) -> None:
    """Write the page; a band is the 95 % t-interval over seeds."""
    style = Path(rlhf_ppo.report.__file__).with_name("templates") / "style.css"
    parts = [Markup("<style>{}</style>").format(Markup(style.read_text(encoding="utf-8")))]
    for cost, label in LABELS.items():
        lines = [_line(item, cost, number) for number, item in enumerate(chosen.values())]
        chart = line_chart(f"Held-out J against {label}", lines, label)
        parts.append(
            Markup("<figure><figcaption>J, by {}</figcaption>{}").format(label, chart or "")
        )
        names = Markup("").join(
            Markup('<li class="run-{}"><span class="swatch"></span>{}, rate {:g}</li>').format(
                number, item.side, item.rate
            )
            for number, item in enumerate(chosen.values())
        )
        parts.append(Markup('<ul class="legend">{}</ul></figure>').format(names))
    file.write_text(Markup("\n").join(parts), encoding="utf-8")


def _line(item: Runs, cost: str, number: int) -> Line:
    curves = list(item.curves.values())
    mean = mean_curve(curves)
    points = [(row[cost], row["j"]) for row in mean]
    band = []
    if len(curves) > 1:
        for row, rows in zip(mean, zip(*curves, strict=True), strict=True):
            found = t_interval([each["j"] for each in rows])
            band.append((row[cost], found["low"], found["high"]))
    return Line(item.side, f"run-{number}", points, band)
