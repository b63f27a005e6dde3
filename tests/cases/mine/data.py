"""Digits-sized data in many shapes that people bring."""

import collections

import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, WeightedRandomSampler


def _xy(n=None):
    d = load_digits()
    x = torch.tensor(d.images, dtype=torch.float32)[:, None] / 16
    y = torch.tensor(d.target)
    g = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[g], y[g]
    return (x, y) if n is None else (x[:n], y[:n])


def _three(x, y, a=1000, b=1300):
    return (x[:a], y[:a]), (x[a:b], y[a:b]), (x[b:], y[b:])


def plain():
    return _three(*_xy())


def flat():
    x, y = _xy()
    return _three(x.reshape(len(x), -1), y)


def leave_one(batch=64):  # train % batch == 1
    x, y = _xy()
    a = 15 * batch + 1
    return _three(x, y, a, a + 300)


def numpy_pairs(validation=True):
    x, y = _xy()
    t, v, e = [(a.numpy(), b.numpy()) for a, b in _three(x, y)]
    return t, (v if validation else None), e


def list_pairs():
    x, y = _xy()
    return tuple((list(a), list(b)) for a, b in _three(x, y))


class Dicts(Dataset):
    def __init__(self, x, y, kind):
        self.x, self.y, self.kind = x, y, kind

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        if self.kind == "name_first":
            return {"path": f"img{i}.png", "image": self.x[i], "label": self.y[i]}
        if self.kind == "name_last":
            return {"image": self.x[i], "label": self.y[i], "path": f"img{i}.png"}
        if self.kind == "tuple_name_first":
            return (f"img{i}.png", self.x[i], self.y[i])
        raise ValueError


def dicts(kind):
    return tuple(Dicts(a, b, kind) for a, b in _three(*_xy()))


Sample = collections.namedtuple("Sample", "image label")


class Named(Dataset):
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        return Sample(self.x[i], self.y[i])


def named():
    return tuple(Named(a, b) for a, b in _three(*_xy()))


class Stream(IterableDataset):
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __iter__(self):
        return iter(zip(self.x, self.y))


def stream():
    return tuple(DataLoader(Stream(a, b), 50) for a, b in _three(*_xy()))


def workers(n=2):
    return tuple(
        DataLoader(TensorDataset(a, b), 100, num_workers=n, persistent_workers=True, shuffle=(i == 0))
        for i, (a, b) in enumerate(_three(*_xy()))
    )


def multilabel():
    x, y = _xy()
    L = torch.stack([(y % 2 == 0), (y > 4), (y % 3 == 0)], 1).float()
    return _three(x, L)


def seg():
    x, y = _xy()
    return _three(x, (x[:, 0] > 0.5).long())


def regression():
    x, y = _xy()
    return _three(x, x.mean((1, 2, 3))[:, None])


def time_first():
    """Batches (time, batch, features), as nn.LSTM wants them by default."""

    def col(b):
        xs, ys = zip(*b)
        return torch.stack(xs)[:, 0].transpose(0, 1), torch.stack(ys)

    return tuple(
        DataLoader(TensorDataset(a, b), 96, collate_fn=col, shuffle=(i == 0)) for i, (a, b) in enumerate(_three(*_xy()))
    )


def list_of_images():
    """Detection style: the batch is (list of images, list of targets)."""

    def col(b):
        xs, ys = zip(*b)
        return list(xs), list(ys)

    return tuple(
        DataLoader(TensorDataset(a, b), 96, collate_fn=col, shuffle=(i == 0)) for i, (a, b) in enumerate(_three(*_xy()))
    )


def loaders(batch=64, balanced=False, drop=False, flipped=False):
    """The usual: DataLoaders made from arguments."""
    x, y = _xy()
    t, v, e = _three(x, y)
    w = torch.ones(len(t[1]))
    w[t[1] < 5] = 0.001

    def col(b):
        xs, ys = zip(*b)
        xs = torch.stack(xs)
        return (xs.flip(3) if flipped else xs), torch.stack(ys)

    train = DataLoader(
        TensorDataset(*t),
        batch,
        drop_last=drop,
        collate_fn=col,
        **({"sampler": WeightedRandomSampler(w, len(w))} if balanced else {"shuffle": True}),
    )
    return train, DataLoader(TensorDataset(*v), 100), DataLoader(TensorDataset(*e), 100)
