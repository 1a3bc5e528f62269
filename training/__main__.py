"""`python -m training`: prepare, fit, evaluate, export, report.

The only module of the package that prints. Errors raised on purpose end the program with one sentence and status 1.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from service.errors import NocturneError

if TYPE_CHECKING:
    from training.distributed import Group

console = Console(stderr=True)  # stdout is for results that other programs read
LICENCE = "CC BY-SA 4.0"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except NocturneError as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("stopped")
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training", description="Turns music files into a model that Nocturne serves."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _prepare_options(commands.add_parser("prepare", help="music files to one training file"))
    _fit_options(commands.add_parser("fit", help="train a network, or go on training it"))
    _evaluate_options(commands.add_parser("evaluate", help="nats per note of a run or an exported model"))
    _export_options(commands.add_parser("export", help="a run to an ONNX file and its model card"))
    _report_options(commands.add_parser("report", help="what an exported model's music is like, beside real music"))
    return parser


def _prepare_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", type=Path, nargs="?", help="searched for music files; or a manifest.csv with `path` and `split`"
    )
    parser.add_argument(
        "--dataset", help="instead of a folder: a data set of muspy, or music21 (its corpus, or music21:COMPOSER)"
    )
    parser.add_argument("--out", type=Path, required=True, help="the training file (.npz)")
    parser.add_argument("--processes", type=int, help="read in this many processes; default: one per core")
    parser.set_defaults(run=_prepare)


def _fit_options(parser: argparse.ArgumentParser) -> None:
    from training.fit import FitConfig
    from training.model import ModelConfig

    parser.add_argument("data", type=Path, nargs="?", help="the training file; with --resume the one of the run unless given")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", type=Path, metavar="RUN", help="folder of the run")
    where.add_argument("--resume", type=Path, metavar="RUN", help="go on with a run that was stopped, with its own settings")
    parser.add_argument("--init", type=Path, metavar="RUN", help="begin with the best weights of another run")
    for config in (FitConfig, ModelConfig):
        for field in fields(config):
            if "help" in field.metadata:
                flag = "--" + field.name.replace("_", "-")
                text = f"{field.metadata['help']} (default {field.default})"
                parser.add_argument(flag, type=type(field.default), dest=field.name, help=text.replace("%", "%%"))
    parser.set_defaults(run=_fit)


def _evaluate_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", type=Path, help="a run's folder, or an exported model (.onnx)")
    parser.add_argument("--data", type=Path, required=True, help="the training file to score")
    parser.add_argument("--split", choices=("train", "valid", "test", "all"), default="valid")
    parser.add_argument(
        "--baselines", type=Path, metavar="TRAIN_FILE", help="also score back-off models fitted on its train split"
    )
    parser.add_argument(
        "--scores", type=Path, nargs="+", default=[], metavar="FILE", help="also show scores of other models (bench.networks)"
    )
    parser.add_argument("--conditions", action="store_true", help="tell the model composer and rendition of each piece")
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of a table")
    parser.set_defaults(run=_evaluate)


def _export_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", type=Path, metavar="RUN", help="the folder of a run")
    parser.add_argument("--out", type=Path, required=True, help="name of the model, such as exported/nocturne")
    parser.add_argument("--licence", default=LICENCE, help="of the weights (default %(default)s)")
    parser.add_argument("--attribution", default="", help="whose music it was learnt from; written into every MIDI file")
    parser.add_argument(
        "--data", type=Path, help="the training file: int8 is set up and compared on it; without, on a piece of music21's corpus"
    )
    parser.set_defaults(run=_export)


def _report_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", type=Path, metavar="MODEL", help="an exported model (.onnx); its card gets the report")
    parser.add_argument("--data", type=Path, required=True, help="the training file: its validation split is the yardstick")
    parser.add_argument("--out", type=Path, help="folder of report.json and the pictures; default: report/ beside the model")
    parser.add_argument("--pieces", type=int, default=500, help="composed to compare statistics (default %(default)s)")
    parser.add_argument("--failures", type=int, default=1000, help="composed to count faults (default %(default)s)")
    parser.add_argument("--controls", type=int, default=100, help="composed for each of key, metre, tempo (default %(default)s)")
    parser.add_argument("--processes", type=int, default=1, help="that compose side by side (default %(default)s)")
    parser.set_defaults(run=_report)


def _progress(shown: bool = True) -> Progress:
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    return Progress(*columns, console=console, disable=not shown)


def _prepare(options: argparse.Namespace) -> None:
    from service.cores import available_cores
    from training.data import InvalidDataset, save_dataset
    from training.import_music import dataset_sources
    from training.prepare import folder_sources, manifest_sources, prepare

    if (options.folder is None) == (options.dataset is None):
        raise InvalidDataset("give either a folder or --dataset")
    if options.dataset:
        sources = dataset_sources(options.dataset)
    elif not options.folder.exists():
        raise InvalidDataset(f"{options.folder} does not exist")
    elif not options.folder.is_dir() and options.folder.suffix != ".csv":
        raise InvalidDataset(f"{options.folder} is neither a folder nor a manifest (.csv)")
    else:
        folder = options.folder if options.folder.is_dir() else options.folder.parent
        manifest = folder / "manifest.csv" if options.folder.is_dir() else options.folder
        sources = manifest_sources(folder, manifest) if manifest.exists() else folder_sources(folder)
    with _progress() as progress:
        task = progress.add_task("", total=len(sources))
        dataset, summary = prepare(
            sources,
            options.processes or available_cores(),
            lambda s: progress.update(task, advance=1, description=f"{s.notes:,} notes, {len(s.skipped)} skipped"),
        )
    save_dataset(options.out, dataset)
    for name, reason in summary.skipped.items():
        console.print(f"skipped {name}: {reason}", markup=False, highlight=False, soft_wrap=True)
    splits = ", ".join(f"{count} {split}" for split, count in sorted(summary.splits.items()))
    print(f"{summary.files} files ({splits}), {summary.notes:,} notes, {summary.seconds / 3600:.2f} hours -> {options.out}")
    print(f"{len(summary.skipped)} skipped; {summary.moved} notes outside the piano moved into it by octaves")


def _fit(options: argparse.Namespace) -> None:
    from training.distributed import join_group

    with join_group() as group:
        _fit_in(group, options)


def _fit_in(group: "Group", options: argparse.Namespace) -> None:
    from training.checkpoint import LAST, load_checkpoint
    from training.data import InvalidDataset, load_dataset
    from training.fit import CannotResume, FitConfig, fit
    from training.fit import Progress as FitProgress
    from training.model import ModelConfig

    given = {name: value for name, value in vars(options).items() if value is not None}
    if options.resume:
        run = options.resume
        content = group.from_first(lambda: load_checkpoint(run / LAST))
        changed = sorted(given.keys() & (content["fit"].keys() | content["model"].keys() | {"init"}))
        if changed:
            raise CannotResume(f"a resumed run keeps its own settings; leave out {', '.join(changed)}")
        data = options.data or Path(content["data_path"])
        dataset = load_dataset(data)
        model_config, config = ModelConfig(**content["model"]), FitConfig(**content["fit"])
    else:
        run, data = options.out, options.data
        if data is None:
            raise InvalidDataset("name the training file; make it with `python -m training prepare`")
        dataset = load_dataset(data)
        config = FitConfig(**{f.name: given[f.name] for f in fields(FitConfig) if f.name in given})
        model_config = ModelConfig(
            **{f.name: given[f.name] for f in fields(ModelConfig) if f.name in given}, conditions=dataset.conditions
        )
    with _progress(shown=group.first) as progress:
        task = progress.add_task("", total=config.steps)

        def report(p: FitProgress) -> None:
            valid = "-" if p.valid_nats is None else f"{p.valid_nats:.3f}"
            nats = f"train {p.train_nats:.3f}, valid {valid}, best {p.best_nats:.3f} nats/note"
            text = f"epoch {p.epochs:.1f}, {nats}, {p.notes_per_s:,.0f} notes/s"
            progress.update(task, completed=p.step, description=text)
            if group.first and not console.is_terminal and (p.step % 50 == 0 or p.step == p.steps):
                left = f"{p.left_s / 60:.0f} min left" if math.isfinite(p.left_s) else ""
                print(f"step {p.step}/{p.steps}, {text}, {left}", flush=True)

        resume = bool(options.resume)
        result = fit(dataset, run, model_config, config, report, resume=resume, data_path=data, init=options.init, group=group)
    if group.first:
        print(f"ended after {result['step']} steps; best validation {result['best_nats']:.4f} nats per note -> {run}")


def _evaluate(options: argparse.Namespace) -> None:
    from training.evaluate import evaluate
    from training.export import EVALUATION, weights_hash
    from training.scores_section import scores_section
    from training.storage import write_atomically

    result = evaluate(options.target, options.data, options.split, options.baselines, options.conditions, options.scores)
    command = f"python -m training evaluate {options.target} --data {options.data.name} --split {options.split}"
    command += f" --baselines {options.baselines.name}" if options.baselines else ""
    command += f" --scores {' '.join(map(str, options.scores))}" if options.scores else ""
    if options.target.is_dir() and options.split == "valid" and not options.conditions:
        # What `export` puts into the model card.
        with write_atomically(options.target / EVALUATION) as file:
            file.write(json.dumps({**result, "command": command, "weights": weights_hash(options.target)}).encode())
    if options.json:
        names = ("nats_per_note", "fields", "baselines", "notes", "pieces")
        print(json.dumps({name: result[name] for name in names}))
        return
    print(scores_section(result))


def _export(options: argparse.Namespace) -> None:
    from training.export import INT8_TOLERANCE, export, read_evaluation

    if read_evaluation(options.target) is None:
        console.print("no figures of these very weights: `evaluate` the run first, and the model card will have them")
    exported = export(options.target, options.out, options.licence, options.attribution, options.data)
    parity, int8 = exported.parity, exported.int8_parity
    size = f"{exported.path.stat().st_size:,} bytes"
    print(f"{exported.path}: {size}, at most {parity.max_error:.1e} nats from PyTorch over {parity.values:,} values")
    nats = f"{int8.nats_per_note:.4f} nats per note, PyTorch {int8.pytorch_nats_per_note:.4f} ({int8.pieces})"
    if exported.int8_path:
        print(f"{exported.int8_path}: {exported.int8_path.stat().st_size:,} bytes, {nats}")
    else:
        console.print(f"no int8 file: it would need {nats}, which is more than {100 * INT8_TOLERANCE} % off")


def _report(options: argparse.Namespace) -> None:
    from training.export import card_path
    from training.model_card import insert_report
    from training.report.make import REPORT_FOLDER, make_report
    from training.report.markdown import report_section
    from training.storage import write_atomically

    folder = options.out or options.target.parent / REPORT_FOLDER
    with _progress() as progress:
        task = progress.add_task("")
        report = make_report(
            options.target,
            options.data,
            folder,
            options.pieces,
            options.failures,
            options.controls,
            options.processes,
            lambda what, done, total: progress.update(task, description=what, completed=done, total=total),
        )
    section = report_section(report, f"{folder.name}/")
    card = card_path(options.target)
    if options.out is None and card.exists():
        with write_atomically(card) as file:
            file.write(insert_report(card.read_text(encoding="utf-8"), section).encode())
    print(section)


if __name__ == "__main__":
    sys.exit(main())
