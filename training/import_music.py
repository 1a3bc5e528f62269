"""Every kind of music file to a `Piece`, by the ending of its name; folders of them; and public data sets.

MIDI is read by the service's own reader, MusicXML and the downloads of data sets by muspy, ABC and **kern by music21; the last
two are imported when needed only. Pitches are left as they are: whoever encodes a piece looks after the range of the piano.
"""

import contextlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from service.errors import InvalidMusic
from service.music.midi import read_midi
from service.music.piece import Hand, Piece
from training.abc_kern import read_abc_text, read_score, split_tunes
from training.data import InvalidDataset
from training.musicxml import read_musicxml
from training.source import Source

MIDI_ENDINGS = (".mid", ".midi", ".kar")
MUSICXML_ENDINGS = (".xml", ".musicxml", ".mxl")
ENDINGS = (*MUSICXML_ENDINGS, ".krn", ".abc", *MIDI_ENDINGS)  # of one work in several formats, the first is taken

CORPUS = "music21"
# The data sets that muspy can fetch and that hold notes; its "haydn" has harmonies only.
DATASETS = (
    "emopia", "essen", "hymnal", "hymnal-tune", "jsb", "lmd", "lmd-aligned", "lmd-matched", "maestro", "maestro-v1", "maestro-v2",
    "musicnet", "nes", "nmd", "wikifonia",
)  # fmt: skip
_TICKS_PER_BEAT = {"jsb": 120}  # where the files' own number is wrong (muspy corrects it in the same way)


def read_music_file(
    path: Path, hand_tracks: Mapping[int, Hand] | None = None, pickup_beats: float | None = None, tune: int = 0
) -> Piece:
    """Read a MIDI, MusicXML, ABC or **kern file.

    Parameters
    ----------
    path : Path
    hand_tracks, pickup_beats
        As in `read_midi`; for MIDI only, since scores say it themselves.
    tune : int
        Which tune of an ABC file, counted from 0.

    Returns
    -------
    Piece
        Pitches may lie outside the piano; the notes may be none.

    Raises
    ------
    InvalidMusic
        With the reason, if the file cannot be read.
    """
    ending = path.suffix.lower()
    if ending in MIDI_ENDINGS:
        return read_midi(path.read_bytes(), hand_tracks, pickup_beats)
    if ending in MUSICXML_ENDINGS:
        return read_musicxml(path)
    if ending == ".krn":
        return read_score(read_abc_text(path), "humdrum")
    if ending == ".abc":
        tunes = split_tunes(read_abc_text(path))
        if tune >= len(tunes):
            raise InvalidMusic(f"the file has {len(tunes)} tunes; there is no number {tune}")
        return read_score(tunes[tune], "abc")
    raise InvalidMusic(f"the name must end in one of {', '.join(ENDINGS)}; got {path.name}")


def list_music_files(folder: Path) -> list[Path]:
    """Return every music file under a folder, at any depth, by name; hidden files and folders are left out."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file())
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def file_sources(folder: Path, paths: list[Path], **known: str) -> list[Source]:
    """Return what there is to read in files, one source for each tune.

    Parameters
    ----------
    folder : Path
        Names are relative to it.
    paths : list of Path
    known
        Fields of `Source` that hold for all: pack, licence and so on.
    """
    sources = []
    for path in paths:
        name = path.relative_to(folder).as_posix()
        tunes = _tunes(path)
        for tune in range(tunes):
            sources.append(Source(f"{name}#{tune + 1}" if tunes > 1 else name, _TuneReader(path, tune), **known))
    return sources


def _tunes(path: Path) -> int:
    if path.suffix.lower() != ".abc":
        return 1
    try:
        return len(split_tunes(read_abc_text(path)))
    except OSError:
        return 1  # whoever reads it will learn the reason


def dataset_sources(name: str, downloads: Path = Path("data")) -> list[Source]:
    """Return the pieces of a public data set.

    Parameters
    ----------
    name : str
        "music21" for the corpus that music21 carries, "music21:bach" for one of its folders: no network needed. Or one of
        `DATASETS`, which muspy fetches.
    downloads : Path
        The folder in which a data set gets a folder of its own; what lies there already is not fetched again.

    Raises
    ------
    InvalidDataset
        If the name is unknown, or the data set cannot be fetched.
    """
    if name.partition(":")[0] == CORPUS:
        return _corpus_sources(name.partition(":")[2])
    if name not in DATASETS:
        known = ", ".join((CORPUS, f"{CORPUS}:COMPOSER", *DATASETS))
        raise InvalidDataset(f"there is no data set {name!r}; known are {known}")
    folder = downloads / name
    _fetch(name, folder)
    paths = list_music_files(folder)
    if not paths:
        raise InvalidDataset(f"the data set {name!r} was fetched to {folder}, but holds no music file")
    if name in _TICKS_PER_BEAT:
        return [Source(p.relative_to(folder).as_posix(), _MidiReader(p, _TICKS_PER_BEAT[name]), pack=name) for p in paths]
    return file_sources(folder, paths, pack=name)


def corpus_file(name: str) -> Path:
    """Return where a file of the corpus that music21 carries lies, such as "bach/bwv66.6.mxl"."""
    from music21 import common

    return Path(common.getCorpusFilePath()) / name


def _corpus_sources(collection: str) -> list[Source]:
    folder = corpus_file("")
    collections = sorted({path.relative_to(folder).parts[0] for path in list_music_files(folder)})
    if collection and collection not in collections:
        raise InvalidDataset(f"music21's corpus has no folder {collection!r}; it has {', '.join(collections)}")
    sources = []
    for one in [collection] if collection else collections:
        # Some works are there in two formats; one would teach what the other is to test.
        works = {path.with_suffix(""): path for path in sorted(list_music_files(folder / one), key=_preference)}
        sources += file_sources(folder, sorted(works.values()), pack=CORPUS)
    return sources


def _preference(path: Path) -> int:
    """Return a higher number for the format to be taken of several."""
    return -ENDINGS.index(path.suffix.lower())


def _fetch(name: str, folder: Path) -> None:
    """Have muspy download and unpack a data set."""
    import muspy

    folder.mkdir(parents=True, exist_ok=True)
    kind = muspy.get_dataset(name)
    fetch = {"download": True} if name.startswith("hymnal") else {"download_and_extract": True}
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # muspy reports there, where our results go
            kind(folder, **fetch)
    except Exception as error:  # no network, a dead address, a wrong checksum, a full disk
        with contextlib.suppress(OSError):
            folder.rmdir()  # if nothing came
        raise InvalidDataset(f"the data set {name!r} cannot be fetched: {error or type(error).__name__}") from error


@dataclass(frozen=True)
class _TuneReader:
    """Reads one tune of a file; a class and not a closure, so that it travels to other processes."""

    path: Path
    tune: int

    def __call__(self) -> Piece:
        return read_music_file(self.path, tune=self.tune)


@dataclass(frozen=True)
class _MidiReader:
    """Reads a MIDI file whose header states a wrong number of ticks per quarter note."""

    path: Path
    ticks_per_beat: int

    def __call__(self) -> Piece:
        data = self.path.read_bytes()
        return read_midi(data[:12] + self.ticks_per_beat.to_bytes(2, "big") + data[14:])  # bytes 12 and 13 of the header
