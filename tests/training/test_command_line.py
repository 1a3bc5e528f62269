"""The command line, from a folder of files to figures: broken files are reported, never fatal."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from service.music.midi_writer import write_midi
from tests.training.conftest import make_piece
from tests.training.test_fit import OPTIONS
from training.__main__ import main
from training.data import load_dataset
from training.prepare import _FileReader, prepare
from training.source import Source


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("music")
    (root / "deep" / "er").mkdir(parents=True)
    for i in range(8):
        (root / "deep" / f"piece{i}.mid").write_bytes(write_midi(make_piece(i)))
    (root / "deep" / "er" / "cut.mid").write_bytes(write_midi(make_piece(1))[:100])
    (root / "empty.mid").write_bytes(b"")
    (root / "no music.midi").write_bytes(write_midi(make_piece(1))[:14].replace(b"\x00\x03", b"\x00\x00"))
    (root / "readme.txt").write_text("not music")
    return root


@pytest.fixture(scope="module")
def manifest(folder) -> Path:
    lines = ["path,split,composer,pack,hand_tracks,pickup_beats,licence,attribution"]
    for i in range(8):
        split = "valid" if i >= 6 else "train"
        lines.append(f'deep/piece{i}.mid,{split},Ana,tunes,"right=1,left=2",{0.5 if i % 2 else 0},CC0,made by a test')
    copy = folder.with_name("with_manifest")
    shutil.copytree(folder, copy)
    (copy / "manifest.csv").write_text("\n".join([*lines, "deep/missing.mid,train,,,,,,", ""]))
    return copy


def test_prepare_a_folder(folder, tmp_path, capfd) -> None:
    assert main(["prepare", str(folder), "--out", str(tmp_path / "a.npz"), "--processes", "2"]) == 0
    out, err = capfd.readouterr()
    assert out.startswith("8 files")
    assert "3 skipped" in out
    for name in ("cut.mid", "empty.mid", "no music.midi"):
        assert f"{name}: " in err
    dataset = load_dataset(tmp_path / "a.npz")
    assert {info.name for info in dataset.infos} == {f"deep/piece{i}.mid" for i in range(8)}


def test_splits_do_not_depend_on_the_other_files(folder, tmp_path) -> None:
    shutil.copytree(folder / "deep", tmp_path / "fewer" / "deep", ignore=shutil.ignore_patterns("piece0*", "piece3*"))
    splits = []
    for source in (folder, tmp_path / "fewer"):
        main(["prepare", str(source), "--out", str(tmp_path / "a.npz"), "--processes", "1"])
        splits.append({info.name: info.split for info in load_dataset(tmp_path / "a.npz").infos})
    assert len(splits[1]) == 6
    assert splits[1].items() <= splits[0].items()


class _Killer:
    """Takes the process that reads it with it, as a parser written in C may."""

    def __call__(self):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_file_that_kills_its_reader_is_skipped(folder) -> None:
    sources = [Source(f"piece{i}", _FileReader(folder / "deep" / f"piece{i}.mid")) for i in range(4)]
    sources.insert(2, Source("killer", _Killer()))
    dataset, summary = prepare(sources, 2, lambda _: None)
    assert [info.name for info in dataset.infos] == ["piece0", "piece1", "piece2", "piece3"]
    assert summary.skipped == {"killer": "the process that read it died"}


def test_a_handful_of_pieces_still_has_one_to_validate_on(folder, tmp_path) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for name in ("piece0.mid", "piece3.mid", "piece5.mid"):
        shutil.copy(folder / "deep" / name, few)
    assert main(["prepare", str(few), "--out", str(tmp_path / "a.npz"), "--processes", "1"]) == 0
    assert sorted(info.split for info in load_dataset(tmp_path / "a.npz").infos) == ["train", "train", "valid"]


def test_prepare_by_manifest_then_fit_evaluate_export(manifest, tmp_path, capfd) -> None:
    data, run = tmp_path / "a.npz", tmp_path / "run"
    assert main(["prepare", str(manifest), "--out", str(data), "--processes", "1"]) == 0
    dataset = load_dataset(data)
    assert [info.split for info in dataset.infos].count("valid") == 2
    assert dataset.infos[1].composer == "Ana"
    assert dataset.pieces[1].start_position == make_piece(1).time_signatures[0].bar_ticks - 12
    assert main(["fit", str(data), "--out", str(run), *OPTIONS]) == 0
    capfd.readouterr()
    assert main(["evaluate", str(run), "--data", str(data), "--baselines", str(data), "--json"]) == 0
    line = capfd.readouterr().out
    result = json.loads(line)
    assert line.count("\n") == 1
    assert set(result) == {"nats_per_note", "fields", "baselines", "notes", "pieces"}
    assert {"uniform", "order3", "order5", "order5+match"} <= set(result["baselines"])
    assert sum(result["fields"].values()) == pytest.approx(result["nats_per_note"])
    assert result["pieces"] == 2
    assert main(["export", str(run), "--out", str(tmp_path / "exported" / "tiny")]) == 0
    assert main(["evaluate", str(tmp_path / "exported" / "tiny.onnx"), "--data", str(data), "--json"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert json.loads(lines[-1])["nats_per_note"] == pytest.approx(result["nats_per_note"], rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare", "nowhere", "--out", "x.npz"], "nowhere does not exist"),
        (["prepare", __file__, "--out", "x.npz"], "is neither a folder nor a manifest"),
        (["prepare", "--out", "x.npz"], "either a folder or --dataset"),
        (["fit", "missing.npz", "--out", "run"], "missing.npz does not exist"),
        (["fit", "--resume", "nowhere"], "nowhere/last.pt does not exist"),
        (["evaluate", "nowhere", "--data", "missing.npz"], "missing.npz does not exist"),
        (["export", "nowhere", "--out", "x"], "nowhere"),
    ],
)
def test_errors_are_one_sentence(arguments, message, capfd, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    err = capfd.readouterr().err
    assert message in err.replace("\n", " ")
    assert "Traceback" not in err
