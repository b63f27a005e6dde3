"""What identifies data: reuse of stored results stands on it."""

from __future__ import annotations

import collections
import dataclasses
import random
import threading

import numpy as np
import pytest
import torch
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Sampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)

from deepcompression.data.splits import Splits
from deepcompression.errors import DataError
from deepcompression.training import identity
from deepcompression.training.identity import identify

X, Y = torch.rand(40, 3, generator=torch.Generator().manual_seed(0)), torch.arange(40)


def digest_of(split, rest=None):
    return identify(Splits(split, rest, rest)).digest


class Rows(Dataset):
    """Samples as a data set of the user's gives them; nothing but its samples tells what is in it."""

    def __init__(self, make, count=20):
        self.make, self.count = make, count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index >= self.count:
            raise IndexError
        return self.make(index)


class Stream(IterableDataset):
    def __init__(self, values):
        self.values = values

    def __iter__(self):
        return iter(self.values)


def test_digest_changes_with_every_byte_and_only_then():
    """Equal data, equal digest; one value other, another digest."""
    changed = X.clone()
    changed[4, 2] += 1e-6
    base = Splits((X, Y), (X, Y), (X, Y))
    others = [
        Splits((changed, Y), (X, Y), (X, Y)),
        Splits((X, Y), (X, Y), (changed, Y)),
        Splits((X.double(), Y), (X, Y), (X, Y)),
        Splits((X.reshape(3, 40), Y), (X, Y), (X, Y)),
        Splits((X, Y), None, (X, Y)),
        Splits((X.numpy(), Y.numpy()), (X, Y), (X, Y)),
        Splits({"x": X, "y": Y}, (X, Y), (X, Y)),
    ]
    assert identify(base) == identify(Splits((X.clone(), Y), (X, Y), (X, Y)))
    assert identify(base).certain and not identify(base).notes
    assert len({identify(one).digest for one in [base, *others]}) == 8


def test_a_digest_of_its_own_or_files_identify_a_data_set(tmp_path):
    """A data set's own digest counts, silently; else its files do, which is noted; also in a loader."""
    told = Rows(lambda index: index)
    told.digest = "v1"
    first = identify(Splits(told, told, DataLoader(told)))
    assert first.certain and not first.notes
    told.digest = lambda: "v2"
    assert digest_of(told) != first.digest
    (tmp_path / "a.bin").write_bytes(b"1")
    files = Rows(lambda index: index)
    files.root = tmp_path
    before = identify(Splits(files, told, told))
    assert before == identify(Splits(files, told, told)) and "1 files" in before.notes[0]
    (tmp_path / "a.bin").write_bytes(b"22")
    assert digest_of(files, told) != before.digest


@dataclasses.dataclass
class Pair:
    image: torch.Tensor
    label: int


Named = collections.namedtuple("Named", "image label")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x, y: (x, y),
        lambda x, y: {"name": f"img{y}.png", "image": x, "label": y},
        lambda x, y: Named(x, y),
        lambda x, y: Pair(x, y),
        lambda x, y: [x.numpy(), np.int64(y), None, b"raw"],
        lambda x, y: {"deep": [{"x": x}, (y,)]},
    ],
    ids=["tuple", "mapping", "namedtuple", "dataclass", "arrays", "nested"],
)
def test_a_data_set_without_a_digest_is_read(wrap):
    """Content decides, whatever a sample looks like: equal samples, equal digest; one number other, another."""
    same = [Rows(lambda index: wrap(X[index], index)) for _ in range(2)]
    other = Rows(lambda index: wrap(X[index] + (index == 19) * 1e-6, index))
    found = identify(Splits(*same, None))
    assert found.certain and len(found.notes) == 1
    assert found.notes[0].startswith("data: train, validation identified by content: 40 samples read")
    assert digest_of(same[0]) == digest_of(same[1]) != digest_of(other)


def test_reading_leaves_every_random_state_as_it_was():
    """A digest must not change what a run draws afterwards; random augmentation is the same at every start."""
    noisy = [Rows(lambda index: (X[index] + torch.randn(3), np.random.rand())) for _ in range(2)]
    torch.manual_seed(5)
    np.random.seed(5)
    expected = torch.rand(2), np.random.rand()
    torch.manual_seed(5)
    np.random.seed(5)
    digests = {digest_of(one) for one in noisy}
    assert len(digests) == 1
    assert torch.equal(torch.rand(2), expected[0]) and np.random.rand() == expected[1]


def test_what_cannot_be_identified_is_never_equal(monkeypatch):
    """Other samples at every reading, objects that hide what they hold, and what takes too long are never reused."""
    generator = np.random.default_rng()
    own_draws = Rows(lambda index: generator.random())
    opaque = Rows(lambda index: (X[index], threading.Lock()))
    monkeypatch.setattr(identity, "SECONDS", -1.0)
    slow = Rows(lambda index: X[index])
    for split, reason in ((own_draws, "other samples each time"), (opaque, "lock"), (slow, "takes more than")):
        found = [identify(Splits(split, None, None)) for _ in range(2)]
        assert found[0].digest != found[1].digest and not found[0].certain
        assert reason in found[0].doubts[0] and "`digest`" in found[0].doubts[0]
    drawn = Rows(lambda index: generator.random())
    (told,) = identify(Splits(own_draws, drawn, (X, Y))).doubts  # one sentence for all that are alike
    assert told.startswith("data: train, validation cannot be identified")


def test_a_reading_that_fails_is_told_with_its_reason():
    """A data set that raises says so in one line, before anything trains."""
    with pytest.raises(DataError, match="reading a sample of Rows fails: KeyError: 'label'"):
        digest_of(Rows(lambda index: {}["label"]))


def test_streams_are_read():
    """A data set that can only be iterated counts by what it gives, with a length or without."""
    assert digest_of(Stream([1, 2])) == digest_of(Stream([1, 2])) != digest_of(Stream([1, 3]))
    assert identify(Splits(DataLoader(Stream(list(X))), None, None)).certain


def _collate(batch):
    return torch.stack([one[0] for one in batch]), torch.stack([one[1] for one in batch])


def _flipped(flip):
    def collate(batch):
        x, y = _collate(batch)
        return (x.flip(1) if flip else x), y

    return collate


def test_loaders_of_one_data_set_differ_in_all_that_makes_batches():
    """Batch size, sampler, its weights, collate_fn, what it closes over: each is another way to train."""
    data = TensorDataset(X, Y)
    weights = torch.ones(40)
    skewed = weights.clone()
    skewed[:5] = 0.1

    def digests():
        made = [
            DataLoader(data, 8),
            DataLoader(data, 4),
            DataLoader(data, 8, drop_last=True),
            DataLoader(data, 8, shuffle=True),
            DataLoader(data, 8, shuffle=True, generator=torch.Generator().manual_seed(1)),
            DataLoader(data, 8, shuffle=True, generator=torch.Generator().manual_seed(2)),
            DataLoader(data, 8, sampler=WeightedRandomSampler(weights, 40)),
            DataLoader(data, 8, sampler=WeightedRandomSampler(skewed, 40)),
            DataLoader(data, 8, collate_fn=_collate),
            DataLoader(data, 8, collate_fn=_flipped(True)),
            DataLoader(data, 8, collate_fn=_flipped(False)),
            DataLoader(data, 8, collate_fn=lambda batch: _collate(batch)),
        ]
        return [digest_of(one) for one in made]

    first = digests()
    assert first == digests() and len(set(first)) == len(first)


def test_a_loader_that_cannot_be_described_counts_by_its_batches():
    """A collate_fn that holds something opaque is identified by the batches that come out."""

    class Collate:
        def __init__(self, scale):
            self.lock, self.scale = threading.Lock(), scale

        def __call__(self, batch):
            x, y = _collate(batch)
            return x * self.scale, y

    data = TensorDataset(X, Y)
    found = [identify(Splits(DataLoader(data, 8, collate_fn=Collate(scale)), None, None)) for scale in (1, 1, 2)]
    assert found[0].certain and "5 batches read" in found[0].notes[0]
    assert found[0].digest == found[1].digest != found[2].digest


class Scaled(Dataset):
    """What a person puts around a data set; whatever it has not, the inner one has."""

    def __init__(self, inner, scale):
        self.inner, self.scale = inner, scale

    def __getattr__(self, name):
        if name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    def __len__(self):
        return len(self.inner)

    def __getitem__(self, index):
        return self.inner[index] * self.scale


class Part(Subset):
    def __init__(self, inner, scale):
        super().__init__(inner, range(10))
        self.scale = scale

    def __getitem__(self, index):
        return super().__getitem__(index) * self.scale

    def __getitems__(self, indices):
        return [self[index] for index in indices]


class Filed(Rows):
    """Files below a root, and labels from elsewhere."""

    def __init__(self, root, labels):
        super().__init__(lambda index: labels[index])
        self.root, self.labels = root, labels


class OwnBatches(DataLoader):
    def __iter__(self):
        return (batch * self.dataset.scale for batch in super().__iter__())


class Drawing(Sampler):
    def __init__(self, generator):
        self.own = generator

    def __iter__(self):
        return iter(range(20))

    def __len__(self):
        return 20


class Listed(list):
    def __call__(self, batch):
        return batch[0] * self.scale


def _listed(scale):
    made = Listed()
    made.scale = scale
    return made


def _with(inner, **attributes):
    for name, value in attributes.items():
        setattr(inner, name, value)
    return inner


ROWS = [float(number) for number in range(1, 21)]


@pytest.mark.parametrize(
    "make",
    [
        lambda tmp, one: Scaled(_with(Rows(lambda index: X[index]), digest="v1"), one),
        lambda tmp, one: Scaled(_with(Rows(lambda index: X[index]), root=tmp), one),
        lambda tmp, one: Part(_with(Rows(lambda index: X[index]), digest="v1"), one),
        lambda tmp, one: Filed(tmp, [one] * 20),
        lambda tmp, one: ConcatDataset([TensorDataset(X), _with(Rows(lambda index: X[index]), digest=f"v{one}")]),
        lambda tmp, one: OwnBatches(_with(Scaled(ROWS, one), digest="v1"), 4),
        lambda tmp, one: DataLoader(ROWS, 4, sampler=Drawing(torch.Generator().manual_seed(one))),
        lambda tmp, one: DataLoader(ROWS, 4, sampler=Drawing(random.Random(one))),
        lambda tmp, one: DataLoader(ROWS, 4, sampler=Drawing(np.random.default_rng(one))),
        lambda tmp, one: DataLoader(ROWS, 4, collate_fn=_listed(one)),
        lambda tmp, one: _with(Rows(lambda index: X[index] * one), digest=lambda: None),
        lambda tmp, one: _with(Rows(lambda index: X[index]), digest=bytes([one])),
        lambda tmp, one: Rows(lambda index: {"a", "b", str(one)}),
        lambda tmp, one: Rows(lambda index: np.array([(one, "a")], [("object", "O"), ("text", "U1")])),
    ],
    ids=[
        "digest of what is inside",
        "root of what is inside",
        "Subset",
        "labels",
        "ConcatDataset",
        "batches",
        "torch",
        "python",
        "numpy",
        "list",
        "no digest",
        "bytes",
        "set",
        "structured",
    ],
)
def test_what_one_object_holds_does_not_stand_for_what_another_makes_of_it(tmp_path, make):
    """Wrappers, subclasses, files with labels from elsewhere, generators of any kind: what differs is told apart."""
    (tmp_path / "a.bin").write_bytes(b"1")
    found = [identify(Splits(make(tmp_path, one), None, None)) for one in (1, 1, 2)]
    assert found[0].certain and found[0].digest == found[1].digest != found[2].digest


@pytest.mark.parametrize("digest", [lambda: 1 / 0, lambda what: "v1", torch.zeros(3000), object()])
def test_a_digest_that_says_nothing_is_refused_in_a_line(digest):
    """What fails, or would be shown in part or by its address, is no digest."""
    with pytest.raises(DataError, match="data: train: the `digest` of Rows"):
        digest_of(_with(Rows(lambda index: X[index]), digest=digest))


def test_randomness_anywhere_in_the_data_is_seen():
    """Samples that are read twice are taken from all of a data set."""
    late = Rows(lambda index: X[index] if index < 35 else torch.from_numpy(np.random.default_rng().random(3)), 40)
    assert not identify(Splits(late, None, None)).certain


def test_too_many_files_below_a_root(monkeypatch, tmp_path):
    """A root such as / is not walked for ever."""
    (tmp_path / "a.bin").write_bytes(b"1")
    monkeypatch.setattr(identity, "SECONDS", -1.0)
    found = identify(Splits(_with(Rows(lambda index: X[index]), root=tmp_path), None, None))
    assert not found.certain and "more files below" in found.doubts[0]


class Working(Stream):
    def __iter__(self):
        assert torch.utils.data.get_worker_info() is not None
        return super().__iter__()


def test_a_stream_for_workers_is_read_in_workers():
    """A stream that shares its samples among workers is not asked without them."""
    found = [digest_of(DataLoader(Working(values), 2, num_workers=1)) for values in ([1, 2, 3], [1, 2, 3], [1, 2, 4])]
    assert found[0] == found[1] != found[2]
