"""Several processes train as one would with all rows: the same losses, the same end, and a run that any number can go on with."""

import csv
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

from tests.training.test_fit import CONFIG, OPTIONS
from training import fit as fitting
from training.__main__ import main
from training.batches import Augmentation, WindowStream
from training.checkpoint import BEST, LAST, InvalidCheckpoint, load_checkpoint
from training.data import load_dataset
from training.distributed import ALONE, CannotShare, Group, leave_group
from training.fit import CannotResume, dropout_seed, fit
from training.model import ModelConfig

PATIENCE_S = 240  # for processes that share one core with everything else
# Nothing random that processes draw for themselves; and steps so small that rounding does not grow.
SURE = "--dropout 0 --offer-dropout 0 --steps 20 --learning-rate 3e-4 --evaluate-every 2 --save-every 2".split()
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "training", "fit"]


def test_rows_are_shared_out_evenly_or_not_at_all(dataset, small, tmp_path) -> None:
    assert [Group(rank, 3).rows(12) for rank in range(3)] == [slice(0, 4), slice(4, 8), slice(8, 12)]
    assert ALONE.rows(7) == slice(0, 7)
    with pytest.raises(CannotShare, match="4 rows cannot be shared out evenly over 3 processes"):
        fit(dataset, tmp_path, small, CONFIG, group=Group(1, 3))


def test_shares_of_a_stream_are_the_rows_of_the_whole(dataset) -> None:
    train = dataset.select("train")
    whole, *shares = (WindowStream(train, 6, 16, 20, Augmentation(), 5, own) for own in (slice(6), slice(2), slice(2, 6)))
    for _ in range(12):
        batch, keep = whole.next()
        parts, keeps = zip(*(share.next() for share in shares), strict=True)
        assert torch.equal(keep, torch.cat(keeps))
        for name, tensor in batch._asdict().items():
            axis = 0 if name in ("slots", "classes", "conditions") else 1
            assert torch.equal(tensor, torch.cat([getattr(part, name) for part in parts], axis))


def test_dropout_differs_between_steps_and_processes() -> None:
    seeds = [dropout_seed(7, step, Group(rank, 4)) for step in range(100) for rank in range(4)]
    assert len(set(seeds)) == 400
    assert dropout_seed(7, 5, ALONE) == dropout_seed(7, 5, Group(0, 1))


def _losses(run: Path) -> list[dict[str, float]]:
    rows = csv.DictReader((run / "curves.csv").read_text().splitlines())
    return [{name: float(value) for name, value in row.items() if name != "seconds"} for row in rows]


def _same_losses(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> bool:
    return all(a == pytest.approx(b, rel=1e-4) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.slow
def test_torchrun_stopped_then_resumed_by_one_process_has_the_losses_of_one(data_file, tmp_path) -> None:
    run, alone, log = tmp_path / "run", tmp_path / "alone", tmp_path / "log"
    options = [*OPTIONS, *SURE]
    with log.open("wb") as file:
        command = [*TORCHRUN, str(data_file), "--out", str(run), *options]
        process = subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        end = time.monotonic() + PATIENCE_S
        while not (run / "curves.csv").exists() or len(_losses(run)) < 2:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)  # as Ctrl-C: torchrun hands it on
        process.wait(PATIENCE_S)
    finally:
        process.terminate()
        process.wait(PATIENCE_S)
    assert log.read_text().count("stopped\n") == 2
    together = load_checkpoint(run / LAST)
    assert 4 <= together["counters"]["step"] < 20
    assert main(["fit", str(data_file), "--out", str(alone), *options]) == 0
    whole = load_checkpoint(alone / LAST)
    assert [part.shape for part in together["state"]] == [part.shape for part in whole["state"]]
    assert _same_losses(_losses(run), _losses(alone)[: len(_losses(run))])
    assert main(["fit", "--resume", str(run)]) == 0
    assert _losses(run)[-1]["step"] == 20
    assert _same_losses(_losses(run), _losses(alone))


def _train_together(rank: int, folder: Path, data: Path) -> None:
    """What each of two processes does for the test below."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    group, dataset = Group(rank, 2), load_dataset(data)
    sizes = {"hidden": 16, "embedding": 16, "head": 16, "memory": 20, "key": 4, "offers": 4, "read": 8}
    shape = ModelConfig(**sizes, dropout=0.3, offer_dropout=0.5, conditions=dataset.conditions)
    config = replace(CONFIG, steps=10, evaluate_every=5)
    whole = fit(dataset, folder / "whole", shape, config, group=group)

    def stop(progress: fitting.Progress) -> None:
        if progress.step == 3 and rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        fit(dataset, folder / "stopped", shape, config, stop, group=group)
    assert load_checkpoint(folder / "stopped" / LAST)["counters"]["step"] == 4
    resumed = fit(dataset, folder / "stopped", shape, config, resume=True, group=group)
    assert {**resumed, "seconds": 0} == {**whole, "seconds": 0}

    still = replace(config, steps=1, learning_rate=0.0)
    assert fit(dataset, folder / "begun", shape, still, init=folder / "whole", group=group)["valid"] == whole["best_nats"]
    with pytest.raises(CannotResume, match="already holds a run"):
        fit(dataset, folder / "whole", shape, config, group=group)
    with pytest.raises(InvalidCheckpoint, match="does not exist"):
        fit(dataset, folder / "none", shape, config, resume=True, group=group)
    with pytest.raises(CannotShare, match="differ in their settings"):
        fit(dataset, folder / "other", shape, replace(config, seed=rank), group=group)
    leave_group()


@pytest.mark.slow
def test_two_processes_stop_together_go_on_together_and_fail_together(data_file, tmp_path) -> None:
    processes = torch.multiprocessing.spawn(_train_together, (tmp_path, data_file), nprocs=2, join=False)
    end = time.monotonic() + PATIENCE_S
    try:
        while not processes.join(1.0):
            assert time.monotonic() < end
    finally:
        for process in processes.processes:
            process.kill()
    assert load_checkpoint(tmp_path / "whole" / BEST)["history"][-1]["step"] == 10
