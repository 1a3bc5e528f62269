"""What `evaluate` found, as a section of Markdown for the model card and the terminal. It computes nothing."""

from collections.abc import Mapping
from typing import Any

from service.music.representation import FIELDS
from training.breakdown import MEASURES, PARTS, THIS_MODEL, Figure

_NAMES = {THIS_MODEL: "**this model**", "uniform": "uniform choice"}
_KINDS = {"order": "chosen contexts", "plain": "plain"}


def scores_section(evaluation: Mapping[str, Any]) -> str:
    """Return the tables of an evaluation.

    Parameters
    ----------
    evaluation : mapping
        From `training.evaluate.evaluate`, or read back from its JSON.

    Returns
    -------
    str
        Markdown without a heading.
    """
    scores = evaluation["scores"]
    models, ratios = scores["models"], scores["ratios"]
    this = models[THIS_MODEL]
    sections = [
        _about_figures(evaluation),
        _table(
            ["", *PARTS, *(f"without tempo and pedal: {part}" for part in PARTS), "bits per second"],
            [[_name(name), *_by_part(model), _figure(model["bits_per_second"])] for name, model in models.items()],
        ),
        _about_baselines(list(ratios)),
        "By field:",
        _table(
            ["", *FIELDS],
            [
                [label, *(_value(by_field[field]) for field in FIELDS)]
                for name, model in models.items()
                for label, by_field in _field_rows(name, model)
            ],
        ),
    ]
    if ratios:
        sections += [
            "Nats of this model over those of each baseline:",
            _table(
                ["", *PARTS, *(f"without tempo and pedal: {part}" for part in PARTS)],
                [[_name(name), *_by_part(ratio)] for name, ratio in ratios.items()],
            ),
        ]
    sections += ["By pack:", _table(["", "pieces", "notes", *_headings()], _group_rows(scores["packs"], models, "packs"))]
    just_this = {THIS_MODEL: this}
    sections += [
        "By composer, of whom few pieces make an interval too narrow:",
        _table(["", "pieces", "notes", *_headings()], _group_rows(scores["composers"], just_this, "composers")),
    ]
    return "\n\n".join(section for section in sections if section)


def _about_figures(evaluation: Mapping[str, Any]) -> str:
    scores = evaluation["scores"]
    pedal_shifts = scores["models"][THIS_MODEL]["without_tempo_and_pedal"]["pedal_shifts"]
    return (
        f"Nats per note over {evaluation['pieces']} whole pieces, {evaluation['notes']:,} notes, lower is better. In brackets: "
        f"95 % intervals by piece (percentiles of {scores['intervals']['resamples']:,} samples of as many pieces). A note is "
        "repeated if the last 4 shifts and intervals before it occurred earlier in the piece "
        f"({scores['repeated_share']:.1%} of the notes), else novel. Without tempo and pedal: the tempo field, and hand and "
        "pitch of pedal tokens, are left out; the shifts of those are counted, being a part of the shift to the next note "
        f"({_value(pedal_shifts)} nats per note of this model)."
    )


def _about_baselines(names: list[str]) -> str:
    if not names:
        return ""
    networks = (
        " Networks named with a number of notes were trained for so many, on the same pieces, so that they compare with each "
        "other (`bench.networks`, `bench.event_stream`); what this model has seen is much more."
    )
    return (
        "The baselines are interpolated Kneser-Ney models, fitted on the same training pieces; a pitch is the mean of a model of "
        "pitches and one of intervals. The plain ones see the last notes' values of a field, and the onset and the hand that "
        "are drawn before; the others see the contexts that held-out training pieces chose. With match: mixed with the "
        "continuation, moved to the present key, of the latest earlier place in the piece that has the same last 4, 8, 16 or 32 "
        "shifts and intervals." + (networks if any(map(_is_network, names)) else "")
    )


def _name(name: str) -> str:
    if name in _NAMES:
        return _NAMES[name]
    kind, match = name.removesuffix("+match"), name.endswith("+match")
    if _is_network(name):
        return name
    return f"Kneser-Ney, order {kind[-1]}, {_KINDS[kind[:-1]]}{', with match' if match else ''}"


def _is_network(name: str) -> bool:
    """Return whether a model is one of other networks' scores, which name themselves, and not of the baselines."""
    return name not in _NAMES and name.removesuffix("+match")[:-1] not in _KINDS


def _headings() -> list[str]:
    return ["all", "novel", "without tempo and pedal: all", "without tempo and pedal: novel"]


def _by_part(figures: Mapping[str, Any]) -> list[str]:
    return [_figure(figures[measure][part]) for measure in MEASURES for part in PARTS]


def _field_rows(name: str, model: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Figure]]]:
    """Return a row for all tokens, and of this model those of novel and repeated ones too."""
    fields = model["everything"].get("fields")
    if fields is None:
        return []
    if name != THIS_MODEL:
        return [(_name(name), fields["all"])]
    return [(_name(name) if part == "all" else f"{_name(name)}, {part}", fields[part]) for part in PARTS]


def _group_rows(sizes: Mapping[str, Any], models: Mapping[str, Any], key: str) -> list[list[str]]:
    return [
        [
            f"{group or '(none)'}{'' if len(models) == 1 else f', {_name(name)}'}",
            f"{size['pieces']:,}",
            f"{size['notes']:,}",
            *(_figure(model[key][group][measure][part]) for measure in MEASURES for part in PARTS[:2]),
        ]
        for group, size in sizes.items()
        for name, model in models.items()
        if key in model and (name == THIS_MODEL or "5" in name)
    ]


def _figure(figure: Figure) -> str:
    if figure is None or figure["low"] is None:
        return _value(figure)
    return f"{figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"


def _value(figure: Figure) -> str:
    return "-" if figure is None else f"{figure['value']:.3f}"


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in (header, *rows)]
    return "\n".join([lines[0], "|---|" + "---:|" * (len(header) - 1), *lines[1:]])
