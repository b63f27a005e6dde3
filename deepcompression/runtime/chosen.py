"""Which layers run from codes: those for which that was measured to be faster."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deepcompression.errors import InputError, in_one_line
from deepcompression.network.edits.quantize_values import Before
from deepcompression.network.names import join
from deepcompression.runtime.coded import Coded, NotInMemory, coded_class
from deepcompression.runtime.layers import convolution_of
from deepcompression.runtime.loading import Loaded, Tensors
from deepcompression.runtime.measured import medians
from deepcompression.runtime.table import Layer
from deepcompression.runtime.ways import Form
from deepcompression.runtime.workers import Workers

AUTO, CODES, DENSE = "auto", "codes", "dense"
Sample = Tensor | Sequence[Any] | Mapping[str, Any]
SHAPES = 3  # of a layer's inputs that are measured


class Chooser:
    """Puts each layer of ``loaded`` into the form in which it runs."""

    def __init__(self, model: nn.Module, state: Tensors, workers: Workers, loaded: Mapping[str, Loaded]) -> None:
        self.model, self.state, self.workers, self.loaded = model, state, workers, loaded
        self.kinds: dict[str, Any] = {name: type(one.layer) for name, one in loaded.items()}
        self.forms = {name: self._forms(one) for name, one in loaded.items() if one.ways}
        self.took: dict[str, dict[tuple[int, ...], list[float]]] = {name: {} for name in self.forms}
        self.chosen: dict[str, int] = {}

    def _forms(self, one: Loaded) -> list[Form]:
        bias = one.layer._parameters.get("bias")
        values = np.zeros(one.shape[0], np.float32) if bias is None else bias.detach().numpy()
        return [way.form(values, convolution_of(one.layer), self.workers) for way in one.ways]

    def choose(self, sample: Sample | None) -> None:
        """Measure, and put every layer into the fastest of its forms.

        Args:
            sample: that the model takes, if any.

        Raises:
            InputError: the model does not take it.
        """
        self.model.eval()
        for name, forms in self.forms.items():
            self._put(name, forms[0])
        if sample is None:
            self._measure_rows()
        else:
            self._measure(sample)
        for name in list(self.forms):
            self._decide(name, sample is not None)

    def _put(self, name: str, form: Form) -> None:
        layer: Any = self.loaded[name].layer
        layer.__class__ = coded_class(self.kinds[name])
        layer.form, layer.where = form, name

    def _make_dense(self, name: str, why: str) -> None:
        """Give a layer its class and its weight back."""
        layer = self.loaded[name].layer
        layer.__class__ = self.kinds[name]
        del vars(layer)["form"], vars(layer)["where"]
        layer._parameters = self._dense_parameters(name)
        del self.forms[name]
        self.loaded[name].ways, self.loaded[name].why = [], why

    def _dense_parameters(self, name: str) -> dict[str, nn.Parameter | None]:
        weight = self.state[join(name, "weight")].to(torch.float32)
        return {"weight": nn.Parameter(weight, requires_grad=False), **self.loaded[name].layer._parameters}

    def _measure_rows(self) -> None:
        for name in self.forms:
            layer = self.loaded[name].layer
            if isinstance(layer, nn.Linear) and self.loaded[name].asked == AUTO:
                value = torch.randn(1, layer.in_features, generator=torch.Generator().manual_seed(0))
                for hook in layer._forward_pre_hooks.values():
                    value = hook(layer, (value,))[0] if isinstance(hook, Before) else value
                self._time(name, value)

    def _measure(self, sample: Sample) -> None:
        """Run the sample, each layer measured on what it gets; anew where a layer turns out to be needed dense."""
        handles = [
            self.loaded[name].layer.register_forward_pre_hook(self._watch(name))
            for name in self.forms
            if self.loaded[name].asked == AUTO
        ]
        try:
            with torch.inference_mode(), in_one_line("run: the model does not take the sample", InputError):
                while name := _run(self.model, sample):
                    self._make_dense(name, "other code than its forward reads its weight")
        finally:
            for handle in handles:
                handle.remove()

    def _watch(self, name: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            if name in self.forms and inputs and _takes(inputs[0]):
                took = self.took[name]
                if tuple(inputs[0].shape) not in took and len(took) < SHAPES:
                    self._time(name, inputs[0])

        return hook

    def _time(self, name: str, value: Tensor) -> None:
        """Microseconds of the dense layer, and of each form, on an input."""
        layer: Any = self.loaded[name].layer
        dense: Any = object.__new__(self.kinds[name])
        vars(dense).update(vars(layer), _parameters=self._dense_parameters(name))
        with torch.inference_mode():
            ways = [lambda: dense.forward(value), *(self._with(layer, form, value) for form in self.forms[name])]
            self.took[name][tuple(value.shape)] = medians(ways, max(self.workers.threads, torch.get_num_threads()))
        layer.form = self.forms[name][0]

    def _with(self, layer: Any, form: Form, value: Tensor) -> Callable[[], Tensor]:
        def call() -> Tensor:
            layer.form = form
            made: Tensor = layer.forward(value)
            return made

        return call

    def _decide(self, name: str, ran: bool) -> None:
        """The form with the least time in all, over the shapes that came."""
        one, took = self.loaded[name], self._times(name)
        if one.asked == CODES or (took is None and ran):
            one.why = "asked for" if one.asked == CODES else "the sample does not come by it"
            return self._keep(name, 0)
        if took is None:
            return self._make_dense(name, "there was no sample to measure it with")
        best = min(range(1, len(took)), key=lambda place: took[place])
        if self.forms[name][best - 1].nbytes >= one.nbytes:
            return self._make_dense(name, "its codes take no fewer bytes")
        if took[best] > took[0]:
            return self._make_dense(name, "dense is faster")
        one.why = "faster"
        return self._keep(name, best - 1)

    def _keep(self, name: str, place: int) -> None:
        self._put(name, self.forms[name][place])
        self.chosen[name] = place

    def _times(self, name: str) -> list[float] | None:
        """Of dense, and of each form, over all shapes."""
        return [sum(each) for each in zip(*self.took[name].values(), strict=True)] if self.took[name] else None

    def rows(self) -> list[Layer]:
        """What was chosen."""
        return [self._row(name, one) for name, one in self.loaded.items()]

    def _row(self, name: str, one: Loaded) -> Layer:
        layer: Any = one.layer
        coded, times = isinstance(layer, Coded), self._times(name) if name in self.took else None
        form = one.ways[self.chosen[name]].name if coded else DENSE
        held = layer.form.nbytes if coded else one.nbytes
        dense, codes = (None, None) if times is None else (times[0], min(times[1:]))
        kind = f"{self.kinds[name].__name__} {' x '.join(map(str, one.shape))}"
        return Layer(name, kind, form, held, one.nbytes, codes, dense, one.why)


def _takes(value: object) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.float32 and bool(value.numel())


def _run(model: nn.Module, sample: Sample) -> str:
    """Run it; the layer whose weight other code would read, or nothing."""
    try:
        if isinstance(sample, Tensor):
            model(sample)
        elif isinstance(sample, Mapping):
            model(**sample)
        else:
            model(*sample)
    except NotInMemory as error:
        return error.layer
    return ""
