import torch
import torch.nn.functional as F


def dict_step(model, b):
    o = model(b["image"])
    return F.cross_entropy(o, b["label"]), o, b["label"]


def tuple3_step(model, b):
    _, x, y = b
    o = model(x)
    return F.cross_entropy(o, y), o, y


def named_step(model, b):
    o = model(b.image)
    return F.cross_entropy(o, b.label), o, b.label


def hf_step(model, b):
    o = model(b[0], labels=b[1])
    return o.loss, o.logits, b[1]


def hf_dict_out(model, b):
    o = model(b[0], labels=b[1])
    return o.loss, o, b[1]


def ml_step(model, b):
    o = model(b[0])[:, :3]
    return F.binary_cross_entropy_with_logits(o, b[1]), o, b[1]


def lm_step(model, b):
    o = model(b[0])
    return F.cross_entropy(o[:, :10], b[1]), o[:, :10], b[1]


def list_step(model, b):
    o = model(torch.stack(b[0]))
    y = torch.stack(b[1])
    return F.cross_entropy(o, y), o, y


class Loss:
    name = "loss"
    higher_is_better = True

    def __call__(self, o, t):
        return o.argmax(1) == t


class BatchAcc:
    """One number a batch."""

    name = "batch_acc"
    higher_is_better = True

    def __call__(self, o, t):
        return (o.argmax(1) == t).float().mean()
