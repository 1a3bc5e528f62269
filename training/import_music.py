from service.music.midi import read_midi


def read_music_file(path, hand_tracks=None, pickup_beats=None):
    return read_midi(path.read_bytes(), hand_tracks, pickup_beats)
