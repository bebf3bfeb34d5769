"""One self-contained HTML page from a training's numbers: curves as inline SVG, tables, pictures as data URIs.

It knows HTML; it reads no file and measures nothing. Every word from a data set is escaped.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from adapters.config import AdapterConfig
from adapters.training.baselines import NO_FILE
from adapters.training.data import BadFile
from adapters.training.recipe import SITELESS
from adapters.training.score import Scored

MAX_MATRIX = 30
"""Classes up to which the whole confusion matrix is shown; beyond, the commonest confusions."""
MAX_CONFUSIONS = 30
MAX_BAD = 50
MAX_CLASSES_SHOWN = 100
WIDTH, HEIGHT, PAD = 420, 200, 40
STYLE = """
:root { color-scheme: light dark; --ink: #1b2330; --paper: #fff; --faint: #8893a5; --line: #d8dee8; --a: #1f6feb;
  --b: #d1570b }
@media (prefers-color-scheme: dark) { :root { --ink: #dfe5ee; --paper: #12161d; --faint: #8893a5; --line: #2c3542;
  --a: #6ea8ff; --b: #ff9d5c } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 960px;
  margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem; margin: 0 } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem }
.lead { font-size: 1.1rem } .faint { color: var(--faint) }
table { border-collapse: collapse } td, th { padding: .15rem .6rem; text-align: right; border: 1px solid var(--line) }
th { font-weight: 600 } td:first-child, th:first-child, .facts td { text-align: left } .scroll { overflow-x: auto }
.curves, .mistakes { display: flex; flex-wrap: wrap; gap: 1rem } figure { margin: 0 }
figcaption { font-size: .85rem; max-width: 30rem; overflow-wrap: anywhere }
svg text { fill: var(--faint); font-size: 11px }
"""


@dataclass(frozen=True)
class Mistake:
    """A held-out example that went wrong, and its picture as a data URI."""

    example: Scored
    picture: str


@dataclass(frozen=True)
class ClassScore:
    """One class: the files it was trained on, those held out, and how many of these were right."""

    label: str
    train: int
    held_out: int
    right: int

    @property
    def recall(self) -> float | None:
        """Share of the held-out files that were right; None where there are none."""
        return self.right / self.held_out if self.held_out else None


def page(
    config: AdapterConfig,
    digest: str,
    confusion: Counter[tuple[str, str]],
    classes: Sequence[ClassScore],
    worst: Sequence[Mistake],
    bad: Sequence[BadFile],
) -> str:
    """The whole document. ``confusion`` counts (right label, given label); ``config.training`` holds the numbers.

    ``digest`` is the file's sha256, empty where there is none.
    """
    told = config.training
    title = f"{escape(config.task)}: {told['held_out_accuracy']:.2%} on {told['held_out_examples']} held-out files"
    parts = [
        f"<h1>{title}</h1>",
        (f'<p class="lead">{escape(told["method"])} on {escape(config.base.model)}, {told["parameters"]:,} trained '
        f"parameters, {told['share_of_backbone']:.2%} of the backbone's {told['backbone_parameters']:,}.</p>"),
        (f"<p>Balanced accuracy, the mean over classes: <b>{told['held_out_balanced_accuracy']:.2%}</b>. "
        "It counts a rare class as much as a frequent one.</p>"),
        (f'<p class="faint">{_standing(told["method"])} The best epoch was chosen by the same held-out files, so '
        "expect slightly less on new ones.</p>"),
        f"<p><b>{escape(told['verdict'])}</b></p>",
        _needs(told.get("needs", [])),
        _curves(told["history"]),
        _reliability(told),
        "<h2>Classes</h2>", _class_table(classes),
        "<h2>Confusion</h2>", _confusion(config.labels, confusion),
        "<h2>Worst mistakes</h2>", _mistakes(worst),
        "<h2>Training</h2>", _facts(config, digest),
        _bad_files(bad),
    ]  # fmt: skip
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8">\n<title>{title}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}</style>\n<body>\n" + "\n".join(p for p in parts if p) + "\n</body></html>\n"
    )


def _standing(method: str) -> str:
    """What the accuracy is one of."""
    if method in NO_FILE:
        return f"This is for comparison: {NO_FILE[method]}, so there is no adapter file to serve."
    return "Accuracy is that of the file, computed with the server's own forward pass."


def _curves(history: Sequence[dict[str, float]]) -> str:
    if not history:
        return ""
    losses = {"training": [h["loss"] for h in history], "held out": [h["held_out_loss"] for h in history]}
    top = max(max(values) for values in losses.values())
    return (
        '<h2>Curves</h2><div class="curves">'
        + _chart("Loss", losses, top or 1.0, "{:.2f}")
        + _chart("Accuracy", {"held out": [h["accuracy"] for h in history]}, 1.0, "{:.0%}")
        + "</div>"
    )


def _chart(name: str, series: dict[str, list[float]], top: float, form: str) -> str:
    """Lines over epochs 1 to n, from 0 to ``top``."""
    count = max(len(values) for values in series.values())
    across, down = WIDTH - 2 * PAD, HEIGHT - 2 * PAD
    marks = "".join(
        f'<line x1="{PAD}" x2="{WIDTH - PAD}" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--line)"/>'
        f'<text x="{PAD - 6}" y="{y + 4:.1f}" text-anchor="end">{form.format(top * share)}</text>'
        for share in (0, 0.25, 0.5, 0.75, 1)
        for y in [HEIGHT - PAD - down * share]
    )
    lines, keys = "", []
    # The held-out curve has the same colour in both charts.
    for label, values in series.items():
        colour = "var(--b)" if label == "training" else "var(--a)"
        points = [
            (PAD + across * i / max(1, count - 1), HEIGHT - PAD - down * min(1.0, v / top))
            for i, v in enumerate(values)
        ]
        lines += f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="'
        lines += " ".join(f"{x:.1f},{y:.1f}" for x, y in points) + '"/>'
        lines += f'<circle cx="{points[-1][0]:.1f}" cy="{points[-1][1]:.1f}" r="3" fill="{colour}"/>'
        keys.append(f'<tspan style="fill:{colour}">{label}</tspan>')
    return (
        f'<figure><svg width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{name} by epoch">{marks}{lines}'
        f'<text x="{PAD}" y="{PAD - 14}">{name}: {" ".join(keys)}</text>'
        f'<text x="{PAD}" y="{HEIGHT - PAD + 16}">epoch 1</text>'
        f'<text x="{WIDTH - PAD}" y="{HEIGHT - PAD + 16}" text-anchor="end">{count}</text></svg></figure>'
    )


def _reliability(told: dict[str, Any]) -> str:
    """How often answers are right by how sure they are: on the line they are as right as their scores say."""
    found, series = told["calibration"], told["reliability"]
    left, low, across, down = PAD, HEIGHT - PAD, WIDTH - 2 * PAD, HEIGHT - 2 * PAD
    marks = f'<path d="M{left} {low} h{across} M{left} {low} v{-down}" stroke="var(--line)"/>'
    marks += f'<line x1="{left}" y1="{low}" x2="{left + across}" y2="{low - down}" stroke="var(--line)"/>'
    for share in (0, 0.5, 1):
        marks += f'<text x="{left + across * share:.0f}" y="{low + 16}" text-anchor="middle">{share:.0%}</text>'
        marks += f'<text x="{left - 6}" y="{low - down * share + 4:.0f}" text-anchor="end">{share:.0%}</text>'
    dots, keys = "", []
    for name, colour in (("before", "var(--b)"), ("after", "var(--a)")):
        most = max(one["count"] for one in series[name])
        for one in series[name]:
            x, y = left + across * one["confidence"], low - down * one["accuracy"]
            dots += f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{2 + 6 * math.sqrt(one["count"] / most):.1f}" '
            dots += f'fill="{colour}" fill-opacity="0.6"><title>{one["count"]} files</title></circle>'
        keys.append(f'<tspan style="fill:{colour}">{name}</tspan>')
    text = f"Expected calibration error, of 15 bins: <b>{found['error_before']:.2%}</b> before"
    text += f", <b>{found['error']:.2%}</b> with temperature {found['temperature']:g}."
    if "abstain_threshold" in found:
        text += (
            f" Answers are accepted from a score of {found['abstain_threshold']:.2%} on: {found['abstain_share']:.0%} "
        )
        text += f"of the held-out files, {found['abstain_accuracy']:.2%} of them right."
    return (
        f"<h2>Calibration</h2><p>{text}</p>"
        f'<figure><svg width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="accuracy by score">{marks}{dots}'
        f'<text x="{PAD}" y="{PAD - 14}">Right, by the best score: {" ".join(keys)}</text></svg></figure>'
    )


def _needs(settings: Sequence[str]) -> str:
    if not settings:
        return ""
    lines = "<br>".join(f"<code>{escape(line)}</code>" for line in settings)
    return f"<p>A server refuses this file unless it is started with:<br>{lines}</p>"


def _class_table(classes: Sequence[ClassScore]) -> str:
    """Every class, those first that are known worst; a class of which nothing was held out says so."""
    order = sorted(classes, key=lambda c: -1.0 if c.recall is None else c.recall)
    rows = "".join(
        f"<tr><td>{escape(c.label)}</td><td>{c.train}</td><td>{c.held_out or 'none'}</td>"
        f"<td>{'not known' if c.recall is None else f'{c.recall:.0%}'}</td></tr>"
        for c in order[:MAX_CLASSES_SHOWN]
    )
    more = len(order) - MAX_CLASSES_SHOWN
    note = f"<p>And {more} more; metrics.json lists all.</p>" if more > 0 else ""
    head = "<tr><th>class</th><th>trained on</th><th>held out</th><th>recall</th></tr>"
    return f'<div class="scroll"><table>{head}{rows}</table></div>{note}'


def _confusion(labels: Sequence[str], counts: Counter[tuple[str, str]]) -> str:
    if len(labels) > MAX_MATRIX:
        wrong = [(pair, n) for pair, n in counts.most_common() if pair[0] != pair[1]][:MAX_CONFUSIONS]
        rows = "".join(f"<tr><td>{escape(a)}</td><td>{escape(b)}</td><td>{n}</td></tr>" for (a, b), n in wrong)
        return f"<table><tr><th>is</th><th>was taken for</th><th>times</th></tr>{rows}</table>"
    head = "".join(f"<th>{escape(label)}</th>" for label in labels)
    rows = ""
    for truth in labels:
        total = sum(counts[truth, given] for given in labels)
        cells = "".join(_cell(counts[truth, given], total, right=given == truth) for given in labels)
        share = f"{counts[truth, truth] / total:.0%}" if total else ""
        rows += f"<tr><th>{escape(truth)}</th>{cells}<td>{share}</td></tr>"
    return f'<div class="scroll"><table><tr><th>is \\ was taken for</th>{head}<th>right</th></tr>{rows}</table></div>'


def _cell(count: int, total: int, *, right: bool) -> str:
    strength = round(70 * count / total) if total else 0
    colour = "var(--a)" if right else "var(--b)"
    shade = f' style="background:color-mix(in srgb, {colour} {strength}%, transparent)"' if strength else ""
    return f"<td{shade}>{count or ''}</td>"


def _mistakes(worst: Sequence[Mistake]) -> str:
    if not worst:
        return "<p>None: every held-out file was right.</p>"
    figures = "".join(
        f'<figure><img src="{m.picture}" alt=""><figcaption>{escape(m.example.path)}<br>is '
        f"<b>{escape(m.example.label)}</b>, was taken for <b>{escape(m.example.predicted)}</b> "
        f"({m.example.scores[m.example.predicted]:.0%})</figcaption></figure>"
        for m in worst
    )
    return f'<div class="mistakes">{figures}</div>'


def _facts(config: AdapterConfig, digest: str) -> str:
    told = dict(config.training)
    told.pop("history")
    told.pop("needs", None)
    told.pop("reliability", None)
    told |= {f"calibration: {name}": value for name, value in told.pop("calibration").items()}
    told |= told.pop("recipe")
    told["peak memory"] = f"{told.pop('peak_memory_bytes') / 2**20:,.0f} MiB"
    told["share_of_backbone"] = f"{told['share_of_backbone']:.3%}"
    told["sites"] = (
        "; ".join(f"{s.site}, rank {s.rank}, scale {s.scale:g}{s.manner}" for s in config.sites)
        or f"none, {SITELESS.get(told['method'], 'the head alone')}"
    )
    told["pool, norm"] = f"{config.pool}, {config.norm}"
    if digest:
        told["sha256"] = digest
    rows = "".join(f"<tr><td>{escape(k.replace('_', ' '))}</td><td>{escape(str(v))}</td></tr>" for k, v in told.items())
    return f'<div class="scroll facts"><table>{rows}</table></div>'


def _bad_files(bad: Sequence[BadFile]) -> str:
    if not bad:
        return ""
    rows = "".join(f"<tr><td>{escape(b.name)}</td><td>{escape(b.reason)}</td></tr>" for b in bad[:MAX_BAD])
    more = f"<p>And {len(bad) - MAX_BAD} more; metrics.json lists all.</p>" if len(bad) > MAX_BAD else ""
    return f'<h2>Files left out</h2><div class="scroll facts"><table>{rows}</table></div>{more}'
