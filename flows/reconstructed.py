"""Budget mode without training: a nearly lossless file, then layers reconstructed on samples, smaller and smaller."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from deepcompression.allocation.budget import Candidate
from deepcompression.allocation.ratio import Tried, next_ratio
from deepcompression.errors import DeepCompressionError
from flows.candidates import FALLBACKS, Search, Step, first_kept, measured, minutes
from tasks import budget as task_budget
from tasks.execution.run import Reference
from tasks.stages import encode, importance, quantize, reconstruct

BITS = 10  # of an integer at most
REST = "float16"  # of what is not reconstructed
PASSES = 4  # over the samples, forwards and backwards, before the first layer: what outputs are worth
OTHERWISE = 2.0  # times what the passes take: all else
CANDIDATES = 3  # that a time limit is to be enough for
LAST_LOOKS = 8  # evaluations on as many samples as validation has, after the search: of the file, on test
BEFORE_TRAINING = 0.5  # of the time that is left, where steps are trained too
BYTES_TRIED, SURELY = 3, 0.99  # files for a size that is given, and of it, for what the coder adds
SLOWER = 1.15  # times as long as the last that the next may take
FIRST = FALLBACKS[:3]  # quickly made, each where none before is kept


@dataclass(frozen=True)
class Way:
    """How thoroughly layers are reconstructed: on so many samples, so many of them in a pass."""

    samples: int
    together: int

    def seconds(self, layers: int, a_sample: float) -> float:
        """What it takes, where a forward of a sample takes so long."""
        passes = -(-layers // self.together) + PASSES
        return OTHERWISE * passes * self.samples * a_sample


WAYS = Way(128, 4), Way(128, 8), Way(128, 16), Way(64, 16), Way(32, 16), Way(16, 16), Way(8, 16)


def reconstructs(now: Search) -> bool:
    """Whether files are made without training: nothing trains, or weights are given and time is short."""
    return now.train is None or (now.run.model.weights is not None and now.plan.time_limit is not None)


def search(now: Search, tell: Callable[[Search], object]) -> str:
    """Makes files into ``now.quick`` until there is nothing more to gain, or no time; why there is no other.

    Args:
        now: a search of which nothing is made yet.
        tell: is called after each.
    """
    try:
        if now.budget.metric_loss is not None:
            first_kept(now, FIRST, now.quick, tell)
        return _smaller_and_smaller(now, tell)
    except TimeoutError:
        return f"{now.time} are spent: {now.last} was cut off"
    except DeepCompressionError as error:  # what was made before is as good as it was
        return f"{now.last} came to nothing ({error})"


def _smaller_and_smaller(now: Search, tell: Callable[[Search], object]) -> str:
    """Ratio after ratio on the validation metric, or until a size that is given is kept."""
    settings = quantize.Beside.model_validate({"stage": "quantize", "rest": REST})
    rounded = now.made("quantize", settings, now.dense)
    a_look = float(rounded.numbers["worked_seconds"])
    end = LAST_LOOKS * a_look + (0.0 if now.train is None else BEFORE_TRAINING * now.left)
    way = _way(now, a_look, now.left - end)
    if way is None:
        return f"{now.time} are spent, too many for layers to be reconstructed"
    outputs = importance.Settings(stage="importance", samples=way.samples)
    worth = now.made("importance", outputs, rounded, counted=False)
    longest = 0.0
    while True:
        target = _target(now)
        if isinstance(target, str):
            return target
        if SLOWER * longest > now.left - end:
            return f"{now.time} are spent, and the next file takes {minutes(SLOWER * longest)}"
        step = _candidate(now, rounded, worth, target, way)
        longest = max(longest, sum(float(one.numbers["worked_seconds"]) for one in step.sharing[1:]))
        now.quick.append(step)
        tell(now)


def _target(now: Search) -> int | str:
    """Bytes of the next file, or why there is none."""
    made = [step.result for step in now.quick]
    if now.budget.bytes_alone is not None:
        return _towards_bytes(now, now.budget.bytes_alone)
    if len(made) >= now.plan.steps:
        return f"{len(made)} of {now.plan.steps} steps are done"
    assert now.budget.metric_loss is not None
    dense = float(now.dense.numbers["dense_bytes"])
    # Of the first files, which are made in another way, only that they are good enough tells something of the others.
    quickly = {way.note for way in FIRST}
    telling = [step.result for step in now.quick if step.result.kept or step.note not in quickly]
    tried = [Tried(dense / one.file_bytes, _likely(one), one.kept) for one in telling]
    ratio = next_ratio(now.budget.metric_loss - now.budget.margin, tried)
    return "what is kept and what is not are too near to gain anything" if ratio is None else int(dense / ratio)


def _towards_bytes(now: Search, most: int) -> int | str:
    """The size itself, then less than it by what the file before took too much."""
    if not now.quick:
        return most
    last = now.quick[-1]
    if last.result.kept:
        return f"a file has {last.result.file_bytes:,} bytes of {most:,}"
    if len(now.quick) >= BYTES_TRIED:
        return f"{len(now.quick)} files for so many bytes became larger"
    return int(SURELY * last.target_bytes * most / last.result.file_bytes)


def _likely(made: Candidate) -> float:
    """The loss that is expected on new samples, where it is known."""
    return made.loss if made.expected is None else made.expected


def _way(now: Search, a_look: float, left: float) -> Way | None:
    """The most thorough way of which so many files fit into the time; the least, where one does; None where none."""
    a_sample = a_look / max(int(now.dense.numbers["val_total"]), 1)
    if now.plan.time_limit is None:
        return WAYS[0]
    layers = task_budget.layers(now.run, now.dense)
    needed = {way: way.seconds(layers, a_sample) + 2 * a_look for way in WAYS}
    fitting = [way for way, seconds in needed.items() if CANDIDATES * seconds <= left]
    return fitting[0] if fitting else WAYS[-1] if needed[WAYS[-1]] <= left else None


def _candidate(now: Search, rounded: Reference, worth: Reference, target: int, way: Way) -> Step:
    """The dense model reconstructed to so many bytes, encoded and measured."""
    name = now.name()
    keys = {"samples": way.samples, "together": way.together, "weights": "linear", "bits": BITS}
    settings = reconstruct.Priced.model_validate(
        {"stage": "reconstruct", "target": {"bytes": target}, "measured": worth.key, **keys}
    )
    made = now.made(f"reconstruct-{name}", settings, rounded)
    encoded = now.made(f"encode-{name}", encode.Settings(stage="encode", coder=now.plan.coder), made)
    result = measured(now, encoded, None)
    note = f"nothing trained, layers reconstructed on {way.samples} samples"
    return Step(target, None, {}, {}, target, (), (rounded, made, encoded), 0, result, None, note)
