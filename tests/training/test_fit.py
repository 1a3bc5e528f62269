"""Training: it learns, it stops when it should, and whatever ends it in the middle, it goes on as if nothing had happened."""

import csv
import errno
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from service.music.representation import encode_piece
from tests.training.conftest import make_piece
from training import fit as fitting
from training.checkpoint import BEST, LAST, InvalidCheckpoint, load_checkpoint, load_network
from training.data import Dataset, PieceInfo, condition_values
from training.fit import CannotResume, FitConfig, fit
from training.model import ModelConfig
from training.storage import write_atomically

CONFIG = FitConfig(
    steps=30, rows=4, window=32, warmup=5, evaluate_every=10, save_every=5, precision="fp32", device="cpu", ema=0.9
)
OPTIONS = (
    "--steps 40 --rows 4 --window 32 --warmup 5 --evaluate-every 10 --save-every 5 --hidden 32 --embedding 24 --head 16 "
    "--memory 40 --key 8 --offers 4 --read 12 --precision fp32 --device cpu"
).split()


def test_overfits_a_phrase(tmp_path) -> None:
    phrase = encode_piece(make_piece(0, bars=2))
    infos = (PieceInfo("a", "train"), PieceInfo("a", "valid"))
    dataset = Dataset((phrase, phrase), infos, condition_values(list(infos)))
    config = replace(
        CONFIG, steps=150, rows=1, window=64, learning_rate=1e-2, weight_decay=0.0, transpose=0, tempo_steps=0,
        velocity_steps=0, endings=0.0, tell_notes=0.0, tell_bars=0.0, hide=1.0, misheard=0.0, evaluate_every=150,
    )  # fmt: skip
    sure = {"dropout": 0.0, "offer_dropout": 0.0}
    model = ModelConfig(layers=2, hidden=64, embedding=64, head=64, memory=32, **sure, conditions=dataset.conditions)
    assert fit(dataset, tmp_path, model, config)["valid"] < 0.1


def test_run_folder_holds_what_was_promised(dataset, small, tmp_path) -> None:
    seen = []
    result = fit(dataset, tmp_path, small, CONFIG, seen.append)
    assert [p.step for p in seen] == list(range(1, 31))
    assert seen[-1].notes_per_s > 0
    rows = list(csv.DictReader((tmp_path / "curves.csv").read_text().splitlines()))
    assert [int(row["step"]) for row in rows] == [10, 20, 30]
    assert float(rows[-1]["valid"]) < float(rows[0]["valid"])
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
    network, content = load_network(tmp_path)
    assert not network.training
    assert content["training"]["sources"] == [["made by a test", "CC0", 10]]
    assert result["best_nats"] == min(float(row["valid"]) for row in rows)


def test_a_run_can_begin_with_anothers_weights(dataset, small, tmp_path) -> None:
    first = fit(dataset, tmp_path / "first", small, CONFIG)
    still = replace(CONFIG, steps=10, learning_rate=0.0)
    wider = replace(small, layers=3)  # what the other run lacks begins afresh
    again = fit(dataset, tmp_path / "again", small, still, init=tmp_path / "first")
    assert again["valid"] == first["best_nats"]
    fit(dataset, tmp_path / "wider", wider, CONFIG, init=tmp_path / "again")
    origins = load_network(tmp_path / "wider")[1]["origins"]
    assert [origin["step"] for origin in origins] == [first["step"], 10]
    assert origins[0]["valid"] == first["best_nats"]


def test_early_stop(dataset, small, tmp_path) -> None:
    config = replace(CONFIG, steps=1000, learning_rate=0.0, patience=2)
    assert fit(dataset, tmp_path, small, config)["step"] == 30  # the first validation is the best, then two without a better


def test_same_seed_same_losses_another_seed_others(dataset, small, tmp_path) -> None:
    a, b, c = (fit(dataset, tmp_path / str(i), small, replace(CONFIG, seed=s))["valid"] for i, s in enumerate((1, 1, 2)))
    assert a == b
    assert a != c


def test_finished_or_foreign_runs_are_not_overwritten(dataset, small, tmp_path) -> None:
    fit(dataset, tmp_path, small, CONFIG)
    with pytest.raises(CannotResume, match="already holds a run"):
        fit(dataset, tmp_path, small, CONFIG)
    with pytest.raises(CannotResume, match="settings differ"):
        fit(dataset, tmp_path, small, replace(CONFIG, rows=5), resume=True)
    with pytest.raises(CannotResume, match="training file differ"):
        fit(Dataset(dataset.pieces[::-1], dataset.infos[::-1], dataset.conditions), tmp_path, small, CONFIG, resume=True)


def _fit_command(data_file: Path, run: Path) -> list[str]:
    return [sys.executable, "-m", "training", "fit", str(data_file), "--out", str(run), *OPTIONS]


def _losses(run: Path) -> list[list[str]]:
    rows = csv.DictReader((run / "curves.csv").read_text().splitlines())
    return [[value for name, value in row.items() if name != "seconds"] for row in rows]


def _wait_for(condition, process: subprocess.Popen) -> None:
    for _ in range(1200):
        if condition():
            return
        assert process.poll() is None, "the training ended before it could be stopped"
        time.sleep(0.05)
    raise AssertionError("the training never got that far")


@pytest.fixture(scope="module")
def uninterrupted(data_file, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    subprocess.run(_fit_command(data_file, run), check=True, capture_output=True)
    return run


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_stopped_in_the_middle_and_resumed_equals_uninterrupted(how, data_file, uninterrupted, tmp_path) -> None:
    run = tmp_path / "run"
    process = subprocess.Popen(_fit_command(data_file, run), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _wait_for(lambda: (run / "curves.csv").exists() and (run / LAST).exists(), process)
    process.send_signal(how)
    assert process.wait() == (-signal.SIGKILL if how == signal.SIGKILL else 130)
    assert load_checkpoint(run / LAST)["counters"]["step"] < 40
    subprocess.run([sys.executable, "-m", "training", "fit", "--resume", str(run)], check=True, capture_output=True)
    assert _losses(run) == _losses(uninterrupted)
    ours, theirs = (load_checkpoint(r / LAST)["network"] for r in (run, uninterrupted))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("where", ["_validate", "_step", "save_checkpoint"])
def test_ctrl_c_anywhere_in_a_step_waits_until_it_is_whole(where, dataset, small, tmp_path, monkeypatch) -> None:
    expected = fit(dataset, tmp_path / "whole", small, CONFIG)
    inner, calls = getattr(fitting, where), []

    def interrupted(*arguments, **options):
        result = inner(*arguments, **options)
        calls.append(where)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(fitting, where, interrupted)
        with pytest.raises(KeyboardInterrupt):
            fit(dataset, tmp_path / "stopped", small, CONFIG)
    result = fit(dataset, tmp_path / "stopped", small, CONFIG, resume=True)
    assert {**result, "seconds": 0} == {**expected, "seconds": 0}


def test_full_disk_loses_nothing_older(tmp_path, monkeypatch) -> None:
    path = tmp_path / "last.pt"
    with write_atomically(path) as file:
        file.write(b"older")

    def no_space(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space"), write_atomically(path) as file:
        file.write(b"newer")
    assert path.read_bytes() == b"older"
    assert list(tmp_path.iterdir()) == [path]


def test_half_written_checkpoint_is_named(dataset, small, tmp_path) -> None:
    fit(dataset, tmp_path, small, CONFIG)
    whole = (tmp_path / BEST).read_bytes()
    (tmp_path / BEST).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InvalidCheckpoint, match=r"best\.pt is not a checkpoint"):
        load_network(tmp_path)
