"""Scores and data sets to pieces: small files written here, a few works of music21's corpus, and data sets that cannot be had."""

import pickle
import zipfile
from pathlib import Path

import mido
import pytest

from service.errors import InvalidMusic
from service.music.midi_writer import write_midi
from service.music.piece import NOTE, RESOLUTION, Hand, KeySignature, Piece, TimeSignature, records
from training.data import InvalidDataset
from training.import_music import dataset_sources, file_sources, list_music_files, read_music_file

R, L, U = Hand.RIGHT, Hand.LEFT, Hand.UNKNOWN


def rows(piece: Piece) -> list[tuple[int, ...]]:
    """The notes as (time, pitch, duration, hand)."""
    return [(time, pitch, duration, hand) for time, pitch, duration, _, hand in piece.notes.tolist()]


def note(step: str, duration: int, *inside: str, octave: int = 4, staff: int = 1) -> str:
    """A MusicXML note of `duration` sixteenths; `inside` are further elements, before those that follow the pitch."""
    tags = "".join(f"<{tag}/>" for tag in inside if tag in ("chord", "grace", "cue"))
    ties = "".join(f'<tie type="{tie}"/>' for tie in inside if tie in ("start", "stop"))
    length = "" if "grace" in inside else f"<duration>{duration}</duration>"
    pitch = f"<pitch><step>{step}</step><octave>{octave}</octave></pitch>" if step else "<rest/>"
    return f"<note>{tags}{pitch}{length}{ties}<staff>{staff}</staff></note>"


def backup(duration: int) -> str:
    return f"<backup><duration>{duration}</duration></backup>"


def attributes(beats: int = 4, fifths: int = 0, mode: str = "major") -> str:
    return (
        f"<attributes><divisions>4</divisions><key><fifths>{fifths}</fifths><mode>{mode}</mode></key>"
        f"<time><beats>{beats}</beats><beat-type>4</beat-type></time></attributes>"
    )


def musicxml(*parts: list[str]) -> str:
    """A score of parts, each a list of bars."""
    numbered = [(f"P{i}", bars) for i, bars in enumerate(parts, start=1)]
    listed = "".join(f'<score-part id="{name}"><part-name>{name}</part-name></score-part>' for name, _ in numbered)
    written = "".join(
        f'<part id="{name}">' + "".join(f'<measure number="{i}">{bar}</measure>' for i, bar in enumerate(bars)) + "</part>"
        for name, bars in numbered
    )
    return (
        '<?xml version="1.0"?><score-partwise version="3.1"><work><work-title>Étude</work-title></work>'
        "<identification><rights>CC0</rights></identification>"
        f"<part-list>{listed}</part-list>{written}</score-partwise>"
    )


def read_xml(folder: Path, *parts: list[str]) -> Piece:
    path = folder / "score.musicxml"
    path.write_text(musicxml(*parts), encoding="utf-8")
    return read_music_file(path)


def test_a_piano_score_on_two_staves(tmp_path: Path) -> None:
    tempo = '<direction><sound tempo="90"/></direction>'
    piece = read_xml(
        tmp_path,
        [
            attributes(3, fifths=-1, mode="minor") + tempo + note("A", 4) + backup(4) + note("", 4, staff=2),
            note("C", 8) + note("E", 8, "chord") + note("D", 4) + backup(12) + note("F", 12, octave=3, staff=2),
            note("E", 12) + backup(12) + note("C", 4, octave=3, staff=2) + note("G", 4, "chord", octave=3, staff=2),
        ],
    )
    assert rows(piece) == [
        (0, 69, 24, R),
        (24, 53, 72, L),
        (24, 60, 48, R),
        (24, 64, 48, R),
        (72, 62, 24, R),
        (96, 48, 24, L),
        (96, 55, 24, L),
        (96, 64, 72, R),
    ]
    assert piece.pickup == RESOLUTION
    assert piece.time_signatures == (TimeSignature(0, 3, 4),)
    assert piece.key_signatures == (KeySignature(0, -1, True),)
    assert piece.tempos.tolist() == [(0, 90.0)]
    assert (piece.title, piece.copyright) == ("Étude", "CC0")


def test_a_chord_across_the_staves(tmp_path: Path) -> None:
    bar = attributes() + note("C", 16, octave=3, staff=2) + note("G", 16, "chord", octave=4, staff=1)
    assert rows(read_xml(tmp_path, [bar])) == [(0, 48, 96, L), (0, 67, 96, R)]


def test_a_last_voice_that_ends_early_does_not_shorten_the_bar(tmp_path: Path) -> None:
    first = attributes() + note("C", 16) + backup(16) + note("E", 4)
    assert rows(read_xml(tmp_path, [first, note("D", 16)])) == [(0, 60, 96, U), (0, 64, 24, U), (96, 62, 96, U)]


def test_a_bar_of_rest_that_is_too_long_does_not_move_the_other_part(tmp_path: Path) -> None:
    upper = [attributes() + note("C", 4), note("D", 16)]
    lower = [attributes() + note("", 16), note("E", 16, octave=3)]
    piece = read_xml(tmp_path, upper, lower)
    assert rows(piece) == [(0, 60, 24, R), (24, 52, 96, L), (24, 62, 96, R)]
    assert piece.pickup == 24


def test_ties(tmp_path: Path) -> None:
    first = attributes() + note("C", 8) + note("E", 8, "start") + note("G", 8, "chord", "start")
    second = note("E", 4, "stop") + note("G", 4, "chord", "stop") + note("E", 4, "start") + note("D", 8)
    # The last tie leads nowhere: the E of the bar after is a new note.
    piece = read_xml(tmp_path, [first, second, note("E", 16)])
    assert rows(piece) == [
        (0, 60, 48, U),
        (48, 64, 72, U),
        (48, 67, 72, U),
        (120, 64, 24, U),
        (144, 62, 48, U),
        (192, 64, 96, U),
    ]


def test_grace_and_cue_notes_are_left_out(tmp_path: Path) -> None:
    bar = attributes() + note("D", 0, "grace") + note("C", 8) + note("E", 4, "cue") + note("F", 4)
    assert rows(read_xml(tmp_path, [bar])) == [(0, 60, 48, U), (72, 65, 24, U)]


def test_repeats_are_played_with_their_endings(tmp_path: Path) -> None:
    def barline(inside: str) -> str:
        return f"<barline>{inside}</barline>"

    bars = [
        attributes() + note("C", 16),
        barline('<ending number="1" type="start"/>') + note("D", 16),
        note("E", 16),  # in the middle of the first ending, and not marked as such
        note("F", 16) + barline('<ending number="1" type="stop"/><repeat direction="backward"/>'),
        barline('<ending number="2" type="start"/>') + note("G", 16) + barline('<ending number="2" type="stop"/>'),
        note("A", 16),
    ]
    assert read_xml(tmp_path, bars).notes["pitch"].tolist() == [60, 62, 64, 65, 60, 67, 69]


def test_one_staff_or_three_are_no_hands(tmp_path: Path) -> None:
    part = [attributes() + note("C", 16)]
    assert set(read_xml(tmp_path, part).notes["hand"]) == {U}
    assert set(read_xml(tmp_path, part, part, part).notes["hand"]) == {U}


def test_tuplets(tmp_path: Path) -> None:
    bar = attributes().replace("<divisions>4<", "<divisions>5<") + "".join(note("C", 2) for _ in range(10))
    assert read_xml(tmp_path, [bar]).notes["time"].tolist() == [0, 10, 19, 29, 38, 48, 58, 67, 77, 86]  # every 9.6 ticks


def test_compressed_musicxml(tmp_path: Path) -> None:
    path = tmp_path / "score.mxl"
    with zipfile.ZipFile(path, "w") as archive:
        rootfile = '<rootfile full-path="music/score.xml"/>'
        archive.writestr("META-INF/container.xml", f"<container><rootfiles>{rootfile}</rootfiles></container>")
        archive.writestr("music/score.xml", musicxml([attributes() + note("C", 16)]))
    assert rows(read_music_file(path)) == [(0, 60, 96, U)]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<score-partwise>", "cannot be read"),
        ("no xml", "cannot be read"),
        ("<score-timewise/>", "score-partwise"),
        ("<html/>", "score-partwise"),
        ("<score-partwise/>", "different numbers of bars"),
        (musicxml(["<note><pitch><step>H</step><octave>4</octave></pitch><duration>4</duration></note>"]), "cannot be read"),
        (musicxml(["<note><pitch><step>C</step><octave>4</octave></pitch><duration>x</duration></note>"]), "cannot be read"),
    ],
)
def test_broken_musicxml_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "score.xml"
    path.write_text(text)
    with pytest.raises(InvalidMusic, match=reason):
        read_music_file(path)


def test_a_broken_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "score.mxl"
    path.write_bytes(b"PK no zip")
    with pytest.raises(InvalidMusic, match="cannot be read"):
        read_music_file(path)


ABC = """%abc-2.1
X:1
T:First
M:3/4
L:1/4
Q:1/4=100
K:Gmin
D | [GB]2 "Gm"G- | G A2 |]
X:2
T:Second
M:4/4
L:1/8
K:C
C4 D4 | E4 F4 | G4 A4 | B4 c4 :|
"""


def test_abc_files_hold_several_tunes(tmp_path: Path) -> None:
    path = tmp_path / "tunes.abc"
    path.write_text(ABC)
    first, second = (source.read() for source in file_sources(tmp_path, [path]))
    assert first.title == "First"
    assert rows(first) == [
        (0, 62, 24, U),
        (24, 67, 48, U),
        (24, 70, 48, U),  # B flat, by the key
        (72, 67, 48, U),  # tied over the barline; the chord symbol is no note
        (120, 69, 48, U),
    ]
    assert first.pickup == RESOLUTION
    assert first.time_signatures == (TimeSignature(0, 3, 4),)
    assert first.key_signatures == (KeySignature(0, -2, True),)
    assert first.tempos.tolist() == [(0, 100.0)]
    assert second.notes["pitch"].tolist() == [60, 62, 64, 65, 67, 69, 71, 72] * 2  # repeated
    assert second.notes["time"].tolist() == [48 * i for i in range(16)]
    assert read_music_file(path, tune=1).title == "Second"
    with pytest.raises(InvalidMusic, match="2 tunes; there is no number 2"):
        read_music_file(path, tune=2)


def test_kern(tmp_path: Path) -> None:
    path = tmp_path / "score.krn"
    # The left hand is the first column; the right hand ties a chord.
    lines = ["**kern\t**kern", "*M2/4\t*M2/4", "4C\t8e", ".\t8f", "4D\t[4e [4g", "=\t=", "2C\t2e] 2g]", "==\t==", "*-\t*-"]
    path.write_text("\n".join(lines))
    assert rows(read_music_file(path)) == [
        (0, 48, 24, L),
        (0, 64, 12, R),
        (12, 65, 12, R),
        (24, 50, 24, L),
        (24, 64, 72, R),
        (24, 67, 72, R),
        (48, 48, 48, L),
    ]


@pytest.mark.parametrize("name", ["tune.abc", "score.krn"])
def test_texts_that_are_no_music_are_refused_or_empty(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(bytes(range(256)))
    try:
        piece = read_music_file(path)
    except InvalidMusic:
        return
    assert len(piece.notes) == 0


def test_midi_with_what_the_caller_knows(tmp_path: Path) -> None:
    path = tmp_path / "piece.MID"
    path.write_bytes(write_midi(Piece(records(NOTE, [(0, 60, 24, 64, R)]))))
    piece = read_music_file(path, hand_tracks={1: L}, pickup_beats=1.0)
    assert rows(piece) == [(0, 60, 24, L)]
    assert piece.pickup == RESOLUTION


def test_other_endings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidMusic, match=r"must end in one of .*; got song\.mp3"):
        read_music_file(tmp_path / "song.mp3")


def test_folders_are_searched_at_any_depth(tmp_path: Path) -> None:
    for name in ("b.mid", "a/c.MIDI", "a/d/e.mxl", "a/f.abc", "readme.txt", ".git/g.mid", "a/.h.mid"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(ABC if name.endswith("abc") else "")
    paths = list_music_files(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == ["a/c.MIDI", "a/d/e.mxl", "a/f.abc", "b.mid"]
    sources = file_sources(tmp_path, paths, pack="mine")
    assert [s.name for s in sources] == ["a/c.MIDI", "a/d/e.mxl", "a/f.abc#1", "a/f.abc#2", "b.mid"]
    assert {s.pack for s in sources} == {"mine"}
    assert pickle.loads(pickle.dumps(sources)) == sources  # they travel to other processes


def test_the_corpus_needs_no_network() -> None:
    bach = {source.name: source for source in dataset_sources("music21:bach")}
    assert len(bach) > 400
    chorale = bach["bach/bwv66.6.mxl"].read()
    assert len(chorale.notes) == 163  # 165 are written; two continue ties
    assert chorale.pickup == RESOLUTION
    assert chorale.key_signatures == (KeySignature(0, 3, True),)
    assert chorale.end == 36 * RESOLUTION
    assert set(chorale.notes["hand"]) == {U}  # four voices


def test_a_work_in_two_formats_is_one_source() -> None:
    names = [source.name for source in dataset_sources("music21:beethoven")]
    assert "beethoven/opus18no1/movement1.mxl" in names
    assert "beethoven/opus18no1/movement1.krn" not in names


def test_piano_and_folk_music_of_the_corpus() -> None:
    sources = {source.name: source for source in dataset_sources("music21")}
    assert len(sources) > 10_000
    piano = sources["schoenberg/opus19/movement2.mxl"].read()
    assert set(piano.notes["hand"]) == {R, L}
    assert piano.notes["pitch"][piano.notes["hand"] == R].mean() > piano.notes["pitch"][piano.notes["hand"] == L].mean()
    tune = next(source for name, source in sources.items() if name.startswith("ryansMammoth/")).read()
    assert len(tune.notes) > 30


def test_unknown_data_sets_are_named() -> None:
    with pytest.raises(InvalidDataset, match=r"no data set 'bach'; known are music21, .*maestro"):
        dataset_sources("bach")
    with pytest.raises(InvalidDataset, match=r"no folder 'abba'; it has .*bach"):
        dataset_sources("music21:abba")


def test_a_data_set_that_cannot_be_fetched_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import muspy

    def unreachable(root: Path, download_and_extract: bool) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(muspy, "get_dataset", lambda name: unreachable)
    with pytest.raises(InvalidDataset, match="'nmd' cannot be fetched: no route to host"):
        dataset_sources("nmd", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_data_set_is_read_from_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import muspy

    def fetched(root: Path, download_and_extract: bool) -> None:
        file = mido.MidiFile(ticks_per_beat=100)  # what the files of this set say, where 120 is meant
        messages = [mido.Message("note_on", note=60, time=0), mido.Message("note_off", note=60, time=120)]
        file.tracks.append(mido.MidiTrack(messages))
        file.save(root / "chorale.mid")

    monkeypatch.setattr(muspy, "get_dataset", lambda name: fetched)
    (source,) = dataset_sources("jsb", tmp_path)
    assert (source.name, source.pack) == ("chorale.mid", "jsb")
    assert source.read().notes["duration"] == [RESOLUTION]
    assert (tmp_path / "jsb").is_dir()


def test_an_empty_download_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import muspy

    monkeypatch.setattr(muspy, "get_dataset", lambda name: lambda root, download_and_extract: None)
    with pytest.raises(InvalidDataset, match="holds no music file"):
        dataset_sources("nes", tmp_path)
