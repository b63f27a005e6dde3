import torch
import torch.nn.functional as F
from torch import nn


def mlp(width=32):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )


def bn_mlp(width=32, momentum=0.1):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, width), nn.BatchNorm1d(width, momentum=momentum), nn.ReLU(), nn.Linear(width, 10)
    )


class WN(nn.Module):
    def __init__(self, new=True, kind="weight", all=False):
        super().__init__()
        p = nn.utils.parametrizations if new else nn.utils
        wrap = getattr(p, f"{kind}_norm")
        self.a = wrap(nn.Linear(64, 64))
        self.b = wrap(nn.Linear(64, 64))
        self.c = wrap(nn.Linear(64, 10)) if all else nn.Linear(64, 10)

    def forward(self, x):
        return self.c(F.relu(self.b(F.relu(self.a(x.flatten(1))))))


class Extra(nn.Module):
    def __init__(self, value="dict"):
        super().__init__()
        self.a = nn.Linear(64, 32)
        self.b = nn.Linear(32, 10)
        self.kind = value
        self.scale = 1.0

    def get_extra_state(self):
        return {"scale": self.scale} if self.kind == "dict" else torch.tensor(self.scale)

    def set_extra_state(self, state):
        self.scale = state["scale"] if self.kind == "dict" else float(state)

    def forward(self, x):
        return self.b(F.relu(self.a(x.flatten(1)))) * self.scale


class HFConv1D(nn.Module):
    """GPT-2's layer: a linear one with its weight transposed, no nn.Linear."""

    def __init__(self, nf, nx):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(nx, nf) * 0.1)
        self.bias = nn.Parameter(torch.zeros(nf))

    def forward(self, x):
        return x @ self.weight + self.bias


class MiniGPT2(nn.Module):
    def __init__(self):
        super().__init__()
        self.wte = nn.Embedding(17, 32)
        self.fc1 = HFConv1D(128, 32 * 64)
        self.fc2 = HFConv1D(32, 128)
        self.lm_head = nn.Linear(32, 17, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, x):
        return self.lm_head(self.fc2(F.gelu(self.fc1(self.wte((x * 16).long().flatten(1)).flatten(1)))))


class Rnn(nn.Module):
    def __init__(self, kind="LSTM", first=True, **kw):
        super().__init__()
        self.rnn = getattr(nn, kind)(8, 32, batch_first=first, **kw)
        self.out = nn.Linear(32, 10)
        self.first = first

    def forward(self, x):
        if isinstance(x, torch.Tensor) and x.ndim == 4:
            x = x[:, 0]
        y, h = self.rnn(x)
        h = h[0] if isinstance(h, tuple) else h
        return self.out(h[-1])


_made = {}


def cached(width=32):
    if width not in _made:
        _made[width] = mlp(width)
    return _made[width]


class Half(nn.Module):
    def __init__(self, dtype="bfloat16"):
        super().__init__()
        self.net = mlp().to(getattr(torch, dtype))
        self.dtype = getattr(torch, dtype)

    def forward(self, x):
        return self.net(x.to(self.dtype)).float()


class Slots(nn.Module):
    def __init__(self, need):
        super().__init__()
        self.net = mlp(need)

    def forward(self, x):
        return self.net(x)


class Out(dict):
    __getattr__ = dict.__getitem__


class ModelOutput(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp()

    def forward(self, pixel_values, labels=None):
        logits = self.net(pixel_values)
        return Out(loss=None if labels is None else F.cross_entropy(logits, labels), logits=logits)


class WildBN(nn.Module):
    """BatchNorm whose channels have very unequal variances."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(64, 32)
        self.bn = nn.BatchNorm1d(32)
        self.o = nn.Linear(32, 10)
        self.register_buffer("gain", torch.logspace(-3, 2, 32))

    def forward(self, x):
        return self.o(F.relu(self.bn(self.a(x.flatten(1)) * self.gain)))


class Thinnable(nn.Module):
    """A residual block with a shortcut of its own, and a depthwise convolution behind it."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.one, self.two = nn.Conv2d(8, 16, 3, 2, 1), nn.Conv2d(16, 32, 3, padding=1)
        self.short = nn.Conv2d(8, 32, 1, 2)
        self.deep, self.point = nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.Conv2d(32, 32, 1)
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(self.two(F.relu(self.one(x))) + self.short(x))
        return self.head(F.relu(self.point(F.relu(self.deep(x)))).mean((2, 3)))
