"""`fit`: train a network on a training file; stop it at any moment and go on later.

Everything random in a step follows from the seed and the number of the step, so a run that was stopped and resumed makes the
same steps as one that never was. `last.pt` holds all that is needed to resume, `best.pt` the averaged weights that scored best
on the validation split.

Started by torchrun, several processes make each step together, each with its share of the rows:

    torchrun --nproc-per-node 2 -m training fit DATA --out RUN ...

The rows play what they would play in one process, the nats of all are divided by the notes of all, and every process makes the
same update; so the losses are those of one process with all rows, but for rounding and for what dropout hits. `--rows` counts the
rows of all. Only the first process reads and writes the run's folder; the training file must lie on every machine. A run goes on
with any number of processes: last.pt holds the state of all rows. Ctrl-C or SIGTERM, to torchrun or to any of the processes,
stops all of them after the same step.
"""

import csv
import hashlib
import io
import math
import platform
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from service.errors import NocturneError
from service.music.representation import FIELDS
from training.batches import Augmentation, WindowStream
from training.checkpoint import BEST, LAST, current_commit, load_checkpoint, save_checkpoint
from training.data import Dataset
from training.distributed import ALONE, CannotShare, Group
from training.model import ModelConfig, Network, State, field_nats
from training.options import option
from training.score import Score
from training.scoring import score_dataset
from training.storage import write_atomically


class CannotResume(NocturneError):
    """A run that cannot go on as asked, with the reason."""


@dataclass(frozen=True)
class FitConfig:
    """How a network is trained."""

    steps: int = option(3000, "updates of the weights; the learning rate falls to zero over them")
    rows: int = option(64, "pieces trained on side by side (B), of all processes together")
    window: int = option(128, "tokens that gradients flow back through (T)")
    learning_rate: float = option(3e-3, "of AdamW, at its highest")
    warmup: int = option(200, "steps over which the learning rate rises")
    weight_decay: float = option(0.01, "of AdamW")
    clip: float = option(1.0, "largest norm of the gradient")
    ema: float = option(0.999, "decay of the averaged weights, which are what is kept")
    transpose: int = option(6, "semitones a piece is moved up or down at most, anew each time")
    tempo_steps: int = option(2, "4 % steps of tempo a piece is moved at most")
    velocity_steps: int = option(2, "steps of 4 a piece's velocities are moved at most")
    endings: float = option(0.6, "share of the plays of a piece in which only its end is played")
    tell_notes: float = option(0.5, "share of the plays in which the notes left are told")
    tell_bars: float = option(0.5, "share of the plays in which the bars left are told")
    hide: float = option(0.25, "share of the plays in which composer, rendition, key or tempo, each by itself, is not told")
    misheard: float = option(0.5, "share of the plays in which some notes are heard wrong")
    wrong: float = option(0.03, "share of the pitches, and of the onsets, heard wrong in them")
    evaluate_every: int = option(250, "steps between validations")
    patience: int = option(12, "validations without a better one before training ends")
    save_every: int = option(100, "steps between savings of last.pt")
    seed: int = option(0, "decides weights, order, augmentation and dropout")
    precision: str = option("auto", "bf16 or fp32 factors in matrix products; auto: bf16 where the processor has it")
    device: str = option("auto", "cpu, cuda, or auto")


@dataclass
class Progress:
    """Where a training is; handed to the caller's `report` after each step."""

    step: int
    steps: int
    epochs: float
    train_nats: float  # per note, of the last step
    valid_nats: float | None  # per note, of the last validation
    best_nats: float
    notes_per_s: float
    left_s: float


@dataclass
class _Run:
    """The live objects of a training."""

    network: Network
    average: Network
    optimiser: torch.optim.Optimizer
    stream: WindowStream
    state: State  # of this process's rows
    commit: str
    group: Group
    step: int = 0
    best: float = math.inf
    since_best: int = 0
    seconds: float = 0.0
    notes: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    origins: list[dict[str, Any]] = field(default_factory=list)  # the runs whose weights this one began with
    train_nats: float = 0.0  # since the last validation
    train_notes: int = 0


def fit(
    dataset: Dataset,
    folder: Path,
    model_config: ModelConfig,
    config: FitConfig,
    report: Callable[[Progress], None] = lambda _: None,
    resume: bool = False,
    data_path: Path | None = None,
    init: Path | None = None,
    group: Group = ALONE,
    make: Callable[[ModelConfig], Network] = Network,
) -> dict[str, Any]:
    """Train, or go on training.

    Parameters
    ----------
    dataset : Dataset
        With a train and a valid split.
    folder : Path
        Gets last.pt, best.pt, curves.csv and curves.png.
    model_config : ModelConfig
    config : FitConfig
    report : callable
        Called after each step.
    resume : bool
        Go on from last.pt, which must come from the same settings and data.
    data_path : Path, optional
        Where the dataset was read from, noted in last.pt.
    init : Path, optional
        A run whose best weights this one begins with. What they lack, or have in another shape, begins as in a fresh network.
    group : Group, optional
        The processes that train together; each of them calls this with the same arguments.
    make : callable, optional
        Makes another network than ours, to compare with it.

    Returns
    -------
    dict
        The last row of the history, and `best_nats`.

    Raises
    ------
    CannotResume
        If `folder` already holds a run and `resume` is False, or if settings or data differ from those of last.pt.
    CannotShare
        If the rows cannot be shared out evenly over the processes, or the processes differ in settings or data.
    KeyboardInterrupt
        On Ctrl-C or SIGTERM, after the step under way was made and last.pt was saved.
    """
    own = group.rows(config.rows)
    train, valid = dataset.select("train"), dataset.select("valid")
    device, product = group.device(choose_device(config.device)), choose_precision(config)
    identity = {"model": model_config.to_dict(), "fit": asdict(config), "data": fingerprint(dataset)}
    if group.any(group.from_first(lambda: identity) != identity):
        raise CannotShare("the processes differ in their settings or training files")
    if not resume and group.from_first((folder / LAST).exists):
        raise CannotResume(f"{folder} already holds a run: resume it, or choose another folder")
    last = {**identity, "data_path": str(data_path or "")}
    run = _start(train, model_config, config, device, group, make)
    if init is not None and not resume:
        path = init / BEST if init.is_dir() else init
        run.origins = begin_with(run.network, group.from_first(lambda: load_checkpoint(path)))
        run.average.load_state_dict(run.network.state_dict())
    if resume:
        _restore(run, group.from_first(lambda: load_checkpoint(folder / LAST)), identity, folder, own)
    with _interrupt_between_steps() as interrupted:
        while run.step < config.steps and run.since_best < config.patience:
            started = time.monotonic()
            nats = _step(run, config, device, product)
            run.seconds += time.monotonic() - started
            validated = run.step % config.evaluate_every == 0 or run.step == config.steps
            if validated:
                _validate(run, valid, config, product, folder, identity)
            stop = group.any(interrupted())
            if validated or stop or run.step % config.save_every == 0:
                _save_last(run, folder, last)
            if stop:
                group.wait()  # when one process has ended, torchrun ends the others: not while the first still saves
                raise KeyboardInterrupt
            valid_nats = run.history[-1]["valid"] if run.history else None
            speed = run.notes / run.seconds
            left_s = (config.steps - run.step) * run.seconds / run.step
            report(Progress(run.step, config.steps, run.stream.epochs, nats, valid_nats, run.best, speed, left_s))
    return {**run.history[-1], "best_nats": run.best}


@contextmanager
def _interrupt_between_steps() -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C and SIGTERM wait until the step under way is whole; a second one ends the program at once, what was saved holds.

    Yields
    ------
    callable
        Whether one of them came.
    """
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield pressed.is_set  # signals reach the main thread only
        return

    def press(number: int, frame: Any) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()

    before = {number: signal.signal(number, press) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield pressed.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def choose_device(name: str) -> torch.device:
    """Return the device that `FitConfig.device` names."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def choose_precision(config: FitConfig) -> torch.dtype:
    """Return the type of the factors of matrix products; bfloat16 on a CPU pays only with instructions for it."""
    if config.precision == "auto":
        fast = choose_device(config.device).type == "cuda" or torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if fast else torch.float32
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[config.precision]


def fingerprint(dataset: Dataset) -> str:
    """Return a hash of all tokens and splits of a dataset."""
    digest = hashlib.sha256()
    for piece, info in zip(dataset.pieces, dataset.infos, strict=True):
        digest.update(f"{info.name}\0{info.split}\0".encode())
        digest.update(piece.tokens.tobytes())
    return digest.hexdigest()[:16]


def _start(
    train: Dataset,
    model_config: ModelConfig,
    config: FitConfig,
    device: torch.device,
    group: Group,
    make: Callable[[ModelConfig], Network],
) -> _Run:
    torch.manual_seed(config.seed)
    network = make(model_config).to(device)
    average = make(model_config).to(device)
    average.load_state_dict(network.state_dict())
    # Weight decay on matrices only: embeddings of rare values and biases would be pulled to zero between their uses.
    matrices = [p for n, p in network.named_parameters() if p.ndim == 2 and "embedding" not in n and "position" not in n]
    others = [p for p in network.parameters() if not any(p is m for m in matrices)]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98))
    how = Augmentation(
        config.transpose,
        config.tempo_steps,
        config.velocity_steps,
        config.endings,
        config.tell_notes,
        config.tell_bars,
        config.hide,
        config.misheard,
        config.wrong,
    )
    rows = group.rows(config.rows)
    stream = WindowStream(train, config.rows, config.window, model_config.memory, how, config.seed, rows)
    state = network.initial_state(rows.stop - rows.start)
    return _Run(network, average, optimiser, stream, state, current_commit(), group)


def begin_with(network: Network, content: dict[str, Any]) -> list[dict[str, Any]]:
    """Copy the weights of a checkpoint into a network, wherever name and shape are the same; return what was trained before."""
    own = network.state_dict()
    same = {name: w for name, w in content["network"].items() if name in own and own[name].shape == w.shape}
    network.load_state_dict(same, strict=False)
    last = content["history"][-1]
    figures = {name: last[name] for name in ("step", "epochs", "notes", "seconds", "valid")}
    return [*content.get("origins", []), {"commit": content["commit"], "data": content["data"], **figures}]


def _step(run: _Run, config: FitConfig, device: torch.device, product: torch.dtype) -> float:
    """Make one update; return the nats per note of its window."""
    torch.manual_seed(dropout_seed(config.seed, run.step, run.group))
    for group in run.optimiser.param_groups:
        group["lr"] = config.learning_rate * _schedule(run.step, config)
    host_batch, keep = run.stream.next()
    batch, state = host_batch.to(device), run.state.rows(keep.to(device))
    run.network.train()
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=product == torch.bfloat16):
        logits, state = run.network(batch, state, product)
    total = torch.stack([nats.sum() for nats in field_nats(logits, batch).values()]).sum()
    torch.autograd.backward(total)
    # The nats of all processes are divided by the notes of all, of which each has another number. One sum of gradients, nats and
    # notes is less to read than DistributedDataParallel, which takes means and wraps the network.
    gradients = [p.grad for p in run.network.parameters() if p.grad is not None]
    sums = torch.stack([total.detach(), ((batch.target[..., 1] > 0) & batch.mask).sum()])
    run.group.add_up([*gradients, sums])
    nats, notes = map(float, sums.tolist())
    torch._foreach_div_(gradients, max(notes, 1.0))
    torch.nn.utils.clip_grad_norm_(run.network.parameters(), config.clip)
    run.optimiser.step()
    run.optimiser.zero_grad(set_to_none=True)
    run.state = type(state)(*(tensor.detach() for tensor in state))
    run.step += 1
    decay = min(config.ema, (1 + run.step) / (10 + run.step))
    with torch.no_grad():
        pairs = zip(run.average.parameters(), run.network.parameters(), strict=True)
        averages, weights = zip(*pairs, strict=True)
        torch._foreach_lerp_(list(averages), list(weights), 1 - decay)
    run.notes += int(notes)
    run.train_nats += nats
    run.train_notes += int(notes)
    return nats / max(notes, 1.0)


def dropout_seed(seed: int, step: int, group: Group) -> int:
    """Return what the dropout of a step follows from, also after a resume: in each process something else."""
    return (seed * 1_000_003 + step) * group.size + group.rank


def _schedule(step: int, config: FitConfig) -> float:
    """Return the factor of the learning rate: a linear rise, then half a cosine down to zero."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    return 0.5 * (1 + math.cos(math.pi * (step - config.warmup) / max(1, config.steps - config.warmup)))


def _validate(run: _Run, valid: Dataset, config: FitConfig, product: torch.dtype, folder: Path, identity: dict[str, Any]) -> None:
    score = _score(run, valid, product)
    row = {"step": run.step, "epochs": run.stream.epochs, "train": run.train_nats / max(run.train_notes, 1)}
    row |= {"valid": score.nats_per_note, **{f"valid_{name}": nats for name, nats in score.fields.items()}}
    row |= {"seconds": run.seconds, "notes": run.notes}
    run.history.append(row)
    run.train_nats, run.train_notes = 0.0, 0
    run.since_best += 1
    better = score.nats_per_note < run.best
    if better:
        run.best, run.since_best = score.nats_per_note, 0
    if better and run.group.first:
        save_checkpoint(
            folder / BEST,
            {
                **identity,
                "network": run.average.state_dict(),
                "history": run.history,
                "origins": run.origins,
                "commit": run.commit,
                "trained_with": {
                    "torch": str(torch.__version__),
                    "machine": platform.machine(),
                    "python": platform.python_version(),
                },
                "training": training_summary(run.stream),
            },
        )
    if run.group.first:
        write_curves(run.history, folder)


def _score(run: _Run, valid: Dataset, product: torch.dtype) -> Score:
    """Score the averaged weights; each process scores a share of the pieces, and learns what the others found."""
    own = range(run.group.rank, len(valid.pieces), run.group.size)
    share = Dataset(tuple(valid.pieces[i] for i in own), tuple(valid.infos[i] for i in own), valid.conditions)
    found = score_dataset(run.average, share, with_conditions=False, product=product).tokens
    tokens = [np.zeros(piece.tokens.shape) for piece in valid.pieces]
    for i, nats in zip(own, found, strict=True):
        tokens[i][:] = nats
    run.group.add_up([torch.from_numpy(nats) for nats in tokens])  # in place
    return Score.of(valid.pieces, tokens)


def training_summary(stream: WindowStream) -> dict[str, Any]:
    """Return what a model card must know of the training data: how much, from where, under which licence."""
    infos = stream.dataset.infos
    packs = {}
    for pack in sorted({info.pack for info in infos}):
        chosen = [info for info in infos if info.pack == pack]
        packs[pack] = {"pieces": len(chosen), "hours": round(sum(i.seconds for i in chosen) / 3600, 2)}
    sources = Counter((info.attribution, info.licence) for info in infos if info.attribution or info.licence)
    return {
        "pieces": len(infos),
        "notes": stream.dataset.notes,
        "hours": round(sum(info.seconds for info in infos) / 3600, 2),
        "packs": packs,
        "sources": [[*source, count] for source, count in sources.most_common()],  # attribution, licence, pieces
        "epochs": round(stream.epochs, 2),
    }


_ROW_AXES = (1, 1, 0)  # of h, c and keys


def _save_last(run: _Run, folder: Path, identity: dict[str, Any]) -> None:
    state = [run.group.join_rows(tensor, axis) for tensor, axis in zip(run.state, _ROW_AXES, strict=True)]
    if not run.group.first:
        return
    save_checkpoint(
        folder / LAST,
        {
            **identity,
            "network": run.network.state_dict(),
            "average": run.average.state_dict(),
            "optimiser": run.optimiser.state_dict(),
            "state": state,
            "counters": {name: getattr(run, name) for name in _COUNTERS},
            "history": run.history,
            "origins": run.origins,
        },
    )


_COUNTERS = ("step", "best", "since_best", "seconds", "notes", "train_nats", "train_notes")


def _restore(run: _Run, content: dict[str, Any], identity: dict[str, Any], folder: Path, own: slice) -> None:
    for name, what in (("model", "the model's settings"), ("fit", "the training's settings"), ("data", "the training file")):
        if content[name] != identity[name]:
            raise CannotResume(f"{what} differ from those of {folder / LAST}: {content[name]} there, {identity[name]} here")
    run.network.load_state_dict(content["network"])
    run.average.load_state_dict(content["average"])
    run.optimiser.load_state_dict(content["optimiser"])
    device = run.network.to_heads.weight.device
    count = own.stop - own.start
    state = zip(content["state"], _ROW_AXES, strict=True)
    run.state = State(*(tensor.narrow(axis, own.start, count).to(device) for tensor, axis in state))
    run.history, run.origins = content["history"], content["origins"]
    for name in _COUNTERS:
        setattr(run, name, content["counters"][name])
    run.stream.skip(run.step)


def write_curves(history: list[dict[str, float]], folder: Path) -> None:
    """Write curves.csv and curves.png: nats per note on both splits over the steps."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(history[0]))
    writer.writeheader()
    writer.writerows(history)
    with write_atomically(folder / "curves.csv") as file:
        file.write(text.getvalue().encode())
    from matplotlib.figure import Figure  # without pyplot: no global state, no display

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    steps = [row["step"] for row in history]
    axes.plot(steps, [row["train"] for row in history], label="train (with dropout)")
    axes.plot(steps, [row["valid"] for row in history], label="valid (averaged weights)")
    for name in FIELDS:
        axes.plot(steps, [row[f"valid_{name}"] for row in history], label=f"valid, {name}", linewidth=0.8, linestyle="--")
    axes.set(xlabel="steps", ylabel="nats per note", ylim=(0, None))
    axes.legend(fontsize="small")
    with write_atomically(folder / "curves.png") as file:
        figure.savefig(file, format="png", dpi=110)
