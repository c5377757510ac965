"""What a study shows and leaves behind: tables, figures, and its part of the HTML report."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastbin import checkpoint, doctor
from fastbin.spectra.plots import figures
from fastbin.spectra.study import NULLS, Study, nearest

FOLDER, RESULTS, PAIRS, PAGE = "spectra", "spectra.json", "pairs.csv", "spectra.html"
REPORT = "report.html"  # of a comparison
_BEGIN, _END = "<!-- spectra: begin -->", "<!-- spectra: end -->"
REFERENCE = "weight_free_hard"
_HEAD = '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>fastbin spectra</title></head>'
_STYLE = """
.spectra { font: 15px/1.5 system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em }
.spectra img { max-width: 100% } .spectra figure { margin: 1.5em 0 }
.spectra table { border-collapse: collapse; margin: 1em 0; font-size: 13px }
.spectra td, .spectra th { padding: .2em .6em; border-bottom: 1px solid #ddd; text-align: right }
.spectra td:nth-child(-n+3), .spectra th:nth-child(-n+3) { text-align: left }
"""


def write(folder: Path, found: Study, command: str) -> Path:
    """Write all of a study to the folder ``spectra`` within `folder`, and into the comparison's report if there is one.

    spectra.json: figures of the networks and pairs of kinds; pairs.csv: the pairs; \\*.png: figures; spectra.html: all of it
    for people, without links to others. Each file is written whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    target = folder / FOLDER
    target.mkdir(exist_ok=True)
    made_with = {"command": command, "versions": doctor.versions()}
    text = json.dumps({"made_with": made_with, **found.to_json()}, indent=1, allow_nan=False)
    checkpoint.write_text(target / RESULTS, text + "\n")
    checkpoint.write_text(target / PAIRS, _csv(found))
    parts = []
    for name, caption, png in figures(found):
        with checkpoint.replacing(target / name) as file:
            file.write(png)
        source = base64.b64encode(png).decode()
        said = html.escape(caption)
        image = f'<img alt="{said}" src="data:image/png;base64,{source}">'
        parts.append(f"<figure>{image}<figcaption>{said}.</figcaption></figure>")
    section = _section(found, command, parts)
    checkpoint.write_text(target / PAGE, f"{_HEAD}<body>\n{section}\n</body></html>\n")
    if (folder / REPORT).exists():
        checkpoint.write_text(folder / REPORT, joined((folder / REPORT).read_text(), section))
    return target


def joined(report: str, section: str) -> str:
    """The report with the section at its end, in the place of an earlier one."""
    before, begin, rest = report.partition(_BEGIN)
    report = before + rest.partition(_END)[2] if begin else report
    body, end, after = report.rpartition("</body>")
    return f"{body}{_BEGIN}\n{section}\n{_END}{end}{after}" if end else f"{report}{_BEGIN}\n{section}\n{_END}"


def show(found: Study) -> None:
    """Print the distances from the searched kind, or between all kinds where it is missing, a line each."""
    print(f"{found.metric} distances; weights of real networks: {found.signed}")
    for row in _told(found):
        interval = "" if row["interval"] is None else f" ± {row['interval']:.2g}"
        parts = [f"{row['data']}, {row['part']}: {' to '.join(row['kinds'])} {row['distance']:.3g}{interval}"]
        parts += [
            f"{name} {row[key]:.2g}" for name, key in (("p", "p"), *((n, n) for n in NULLS)) if row[key] is not None
        ]
        print(", ".join(parts))


def _tables(found: Study) -> list[tuple[str, list[str], list[list[str]]]]:
    pairs = ["data", "part", "kinds", found.metric, "± 95 %", "within", "p", *NULLS, "left"]
    networks = [
        "data", "kind", "seed", "nodes", "edges", "components", "gap", "algebraic connectivity", "spectral entropy",
        "ln spanning trees", "error",
    ]  # fmt: skip
    keys = [name.replace(" ", "_").replace("ln_", "log_") for name in networks]
    return [
        (f"distances between kinds, weights of real networks: {found.signed}", pairs, [_row(r) for r in _told(found)]),
        ("networks", networks, [[_figure(n[key]) for key in keys] for n in found.to_json()["networks"]]),
    ]


def _told(found: Study) -> list[dict[str, Any]]:
    """The pairs with the searched kind by data set and part, the nearest first; all pairs where there is no such kind."""
    rows = []
    for data in dict.fromkeys(g.data for g in found.groups):
        for part in dict.fromkeys(row["part"] for row in found.pairs if row["data"] == data):
            rows += [row for _, row in nearest(found, data, part, REFERENCE)]
    return rows or found.pairs


def _row(row: dict[str, Any]) -> list[str]:
    numbers = [row["distance"], row["interval"], row["within"], row["p"], *(row[name] for name in NULLS), row["left"]]
    return [row["data"], row["part"], " | ".join(row["kinds"]), *map(_figure, numbers)]


def _figure(value: Any) -> str:
    if isinstance(value, list):
        return " | ".join(map(_figure, value))
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _csv(found: Study) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    names = ["data", "part", "distance", "interval", "statistic", "p", "permutations", *NULLS]
    table.writerow(["kind", "other", *names, "within", "within_other", "left", "left_other", "metric", "signed"])
    for row in found.pairs:
        figures = [*row["kinds"], *(row[name] for name in names), *row["within"], *row["left"]]
        table.writerow([*figures, found.metric, found.signed])
    return text.getvalue()


def _section(found: Study, command: str, parts: Sequence[str]) -> str:
    tables = "\n".join(_html_table(*table) for table in _tables(found))
    return f"""<section class="spectra" id="spectra"><style>{_STYLE}</style>
<h2>Spectra</h2>
<p>Networks as graphs: units are nodes, weights are edges. The eigenvalues of normalised Laplacians, of the whole network
and of each layer with its inputs alone, lie between 0 and 2 for any kind of network. How the weights of real networks were
taken: <b>{found.signed}</b>. Made by <code>{html.escape(command)}</code>.</p>
{"".join(parts)}
<p>In the table, “same density” and “same degrees” are distances between random structures with the densities, or with the
degrees of all units, of the two kinds: what these alone make of the distance. “left” is how far either kind is from random
structures of its own degrees; “within”, how far networks of a kind are from each other; p, of a permutation test.</p>
{tables}
</section>"""


def _html_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    body = "\n".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><caption>{html.escape(title)}</caption>\n<tr>{head}</tr>\n{body}</table>"
