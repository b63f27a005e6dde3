import sys
from pathlib import Path

from pre import scale


def splits():
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from mine.data import plain

    train, validation, test = plain()
    return (train[0] * scale, train[1]), validation, test
