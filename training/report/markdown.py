"""The report as a section of the model card: Markdown with tables, every number from report.json."""

from collections.abc import Mapping, Sequence
from typing import Any

FAULTS = {
    "repeated": "one note more than 8 times in a row",
    "silence": "silence longer than 2 bars",
    "crowded": "more than 10 keys down at once",
    "stretched": "one hand strikes more than 2 octaves",
    "edge": "drifts to an edge of the keyboard",
    "endless": "not over at its length, which the model was told",
}
FORM = {
    "returning_figures": "4-note figures that return within 128 notes",
    "off_beat": "notes off the 16th grid",
    "restruck": "notes on a key that is still down",
    "clarity": "clarity of the key (Krumhansl)",
}
_SHARES = ("returning_figures", "off_beat", "restruck")  # of FORM, printed in per cent


def report_section(report: Mapping[str, Any], folder: str = "") -> str:
    """Return the section, without a heading of its own, with headings of level 3 for its parts.

    Parameters
    ----------
    report : mapping
        From `make_report`, or as read from report.json.
    folder : str
        Where its pictures are, as the links should say it: "" or ending in a slash.
    """
    compared = report["compared"]
    settings = ", ".join(f"{name} {value}" for name, value in report["settings"].items() if name != "lag_bias")
    parts = [
        f"{compared['composed']} composed pieces of up to {compared['notes']} notes beside {compared['excerpts']} excerpts of as "
        f"many notes from {compared['valid_pieces']} validation pieces. Composed as the service does by default ({settings}), "
        "but with the rendition and the metre of the excerpts. Made by `python -m training report`.",
        *_skipped(report),
        *_statistics(report),
        *_originality(report),
        *_form(report),
        *_failures(report),
        *_control(report),
    ]
    return "\n\n".join(parts).replace("](", f"]({folder}") + "\n"


def _skipped(report: Mapping[str, Any]) -> list[str]:
    return [f"Not asked, since the model does not know it: {', '.join(report['skipped'])}."] if report["skipped"] else []


def _statistics(report: Mapping[str, Any]) -> list[str]:
    statistics, compared = report["statistics"], report["compared"]
    headline = statistics["headline"]
    rows = [
        [
            name.replace("_", " "),
            *(_number(statistics["figures"].get(name, {}).get(group, {}).get("mean")) for group in ("real", "composed")),
            *(_number(row[key]) for key in ("area", "ceiling_area", "divergence", "ceiling_divergence", "spread")),
        ]
        for name, row in statistics["features"].items()
    ]
    weak = [name.replace("_", " ") for name, row in statistics["features"].items() if row["area"] < 0.9 * row["ceiling_area"]]
    return [
        "### Statistics",
        f"**Mean overlapped area {headline['area']:.3f}, {_percent(headline['ratio'])} of the {headline['ceiling_area']:.3f} "
        "that real music reaches against real music** (Yang and Lerch 2018: densities of the distances within the real set and "
        f"between the sets; means over {compared['halvings']} halvings of the validation pieces, half of them against the other "
        "half and against as many composed ones). Spread is the mean distance between composed pieces by that between real ones. "
        f"Standard deviation of the ratio over the halvings: {_percent(headline['ratio_sd'])}. "
        f"Under 90 % of their own ceiling: {', '.join(weak) or 'none'}.",
        "![Overlapped area of each feature](overlap.png)",
        _table(
            ["", "real, mean", "composed, mean", "OA", "OA, real", "KLD", "KLD, real", "spread"],
            rows,
        ),
        "![Distributions](distributions.png)",
    ]


def _originality(report: Mapping[str, Any]) -> list[str]:
    figures = report["originality"]
    rows = [[group, *(f"{figures[group][key]:g}" for key in ("median", "p95", "longest"))] for group in ("composed", "real")]
    worst, real = figures["composed"], figures["real"]
    return [
        "### Originality",
        "The longest run of steps (interval and shift, so in any key) that a piece shares with any of the training pieces. "
        "Nothing trivial is left out: repeated notes and scales count, as they do in real pieces.",
        _table(["longest shared run, steps", "median", "95th percentile", "longest"], rows),
        f"{_percent(figures['above'])} of the composed pieces share a longer run than the 95th percentile of real ones "
        f"({real['p95']:g}). The longest of a composed piece, {worst['longest']} steps of {worst['kinds']} kinds, is shared "
        f"with `{worst['piece']}`; of a real one, {real['longest']} steps of {real['kinds']} kinds, with `{real['piece']}`.",
    ]


def _form(report: Mapping[str, Any]) -> list[str]:
    short, long = report["form"], report["form_long"]
    default = report["form_default"][str(report["compared"]["notes"])]
    columns = [(default, "composed"), *((table, group) for table in (short, long) for group in ("composed", "real"))]
    rows = []
    for name, text in FORM.items():
        show = _percent if name in _SHARES else _number
        rows.append(
            [text, *(f"{show(t[g][name]['mean'])} ({show(t[g][name]['p5'])} to {show(t[g][name]['p95'])})" for t, g in columns)]
        )
    notes = f"{long['notes']} notes"
    return [
        "### Form",
        "Means over pieces, 5th and 95th percentile in brackets; first of the pieces composed at the default settings, then of "
        "those with the rendition and the metre of the real ones beside them. "
        f"Of {notes}: {long['pieces']['composed']} composed pieces, {long['pieces']['real']} real ones.",
        _table(["", "by default", "composed", "real", f"composed, {notes}", f"real, {notes}"], rows),
        "Bars 4, 8, 12 and 16 apart are more alike than their neighbours by "
        f"{_number(long['similarity']['composed_peak'])} in composed music and by {_number(long['similarity']['real_peak'])} in "
        "real music.",
        "![Similarity of bars over their distance](similarity.png)",
        "The bars of one piece each, the one with the median share of returning figures:",
        "![Self-similarity](matrices.png)",
    ]


def _failures(report: Mapping[str, Any]) -> list[str]:
    tables = report["failures"]
    heads, rows = [""], {name: [text] for name, text in FAULTS.items()}
    for length, table in tables.items():
        for group in ("composed", "real"):
            found = table[group]
            heads.append(f"{group}, {length} notes ({max((row['of'] for row in found.values()), default=0)} pieces)")
            for name, row in rows.items():
                row.append(_share(found[name]) if name in found else "-")
    return [
        "### Faults",
        "Share of the pieces that have the fault anywhere, with its 95 % interval.",
        _table(heads, list(rows.values())),
    ]


def _control(report: Mapping[str, Any]) -> list[str]:
    control, rows, missing = report["control"], [], []
    for name in ("key", "metre", "tempo"):
        found = control[name]
        if found is None:
            missing.append(name)
            continue
        rows.append([name, *(f"{_share(found[group])} of {found[group]['of']}" for group in ("composed", "real"))])
        if name == "key":
            for kind in ("relative", "parallel", "fifth", "other"):
                rows.append([f"the {kind} key instead" if kind != "other" else "another key instead"])
                rows[-1] += [_percent(found[group]["relations"][kind]) for group in ("composed", "real")]
        if name == "metre":
            rows.append(["the metre, as if each were asked for equally often"])
            rows[-1] += [_percent(found[group]["balanced"]) for group in ("composed", "real")]
            rows.append(["a metre of the same feel", *(_share(found[group]["family"]) for group in ("composed", "real"))])
    return [
        "### Control",
        f"How often pieces of {control['notes']} notes are found to be what was asked for, with the 95 % interval. Beside it how "
        "often the same measure finds it in real passages: in the key of their whole piece, in the metre they are written in, "
        "their mean tempo within 10 % of their tempo class.",
        _table(["", "composed", "real passages"], rows),
        *([f"The model cannot be asked for: {', '.join(missing)}."] if missing else []),
    ]


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _share(row: Mapping[str, Any]) -> str:
    return f"{_percent(row['share'])} ({100 * row['low']:.1f} to {100 * row['high']:.1f})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; all columns but the first are numbers and stand at the right."""
    lines = [f"| {' | '.join(row)} |" for row in (head, *rows)]
    return "\n".join([lines[0], "|---|" + "---:|" * (len(head) - 1), *lines[1:]])
