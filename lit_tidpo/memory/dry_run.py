"""Running code without numbers: what it would allocate is counted, and nothing is computed.

Floating-point tensors are fake: they have a shape, a type and a device, and no content. Integers
and booleans (token ids, lengths, masks, positions) are real, because shapes hang on them. So the
code of a training step runs as it stands, and each of its tensors is counted from when it is made
until nothing holds it any more.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

OTHERS = "activations"
"""What a tensor is called that nobody called otherwise."""


class Allocations:
    """The storages that come and go, in their order.

    Args:
        wide: Entries of the last dimension by which logits are known.
    """

    def __init__(self, wide: int | None = None) -> None:
        self.wide = wide
        self._events: list[tuple[int, int]] = []  # which storage, and the bytes that it adds
        self._numbers: dict[int, int] = {}  # of the storages that are there, by their id
        self._names: dict[int, str] = {}

    def note(self, tensor: Tensor) -> None:
        """Count a tensor's storage, if it is new."""
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._numbers or not (size := storage.nbytes()):
            return
        number = self._numbers[key] = len(self._events)
        self._events.append((number, size))
        if self.wide is not None and tensor.dim() > 1 and tensor.shape[-1] == self.wide:
            self._names[number] = "logits"
        weakref.finalize(storage, self._free, key, number, size).atexit = False

    def _free(self, key: int, number: int, size: int) -> None:
        del self._numbers[key]
        self._events.append((number, -size))

    def name(self, name: str, tensors: Iterable[Tensor]) -> None:
        """Say what tensors are, from when they were made on."""
        for tensor in tensors:
            key = id(tensor.untyped_storage())
            if key in self._numbers:
                self._names[self._numbers[key]] = name

    def mark(self) -> int:
        """Where the record stands, for :meth:`peak`."""
        return len(self._events)

    def peak(self, start: int = 0, end: int | None = None) -> Counter[str]:
        """Bytes by name at the moment between two marks at which they are the most together."""
        held: Counter[str] = Counter()
        best, total, most = Counter[str](), 0, -1
        for place, (number, size) in enumerate(self._events[:end]):
            held[self._names.get(number, OTHERS)] += size
            total += size
            if place + 1 >= start and total > most:
                most, best = total, held.copy()
        return best


_INDEXED = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
}

_ANSWERS: dict[Any, Callable[..., Any]] = {
    aten.all.default: lambda _: torch.tensor(True),
    aten.any.default: lambda _: torch.tensor(False),
    aten.equal.default: lambda *_: True,
    aten._local_scalar_dense.default: lambda value: value.dtype == torch.bool,
    aten.nonzero.default: lambda values: torch.ones(values.shape, dtype=torch.bool).nonzero(),
}
"""What code is told that asks for numbers that are not there."""


def _tensors(values: Any) -> Iterator[Tensor]:
    """Tensors among the arguments or results of an operation; faster than pytree, which counts."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (tuple, list, type({}.values()))):
        for value in values:
            yield from _tensors(value)


def _with(values: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Arguments with other tensors in the place of theirs."""
    if isinstance(values, Tensor):
        return change(values)
    if isinstance(values, (tuple, list)):
        return type(values)(_with(value, change) for value in values)
    return values


def _places(indices: Iterable[Tensor | None]) -> list[Tensor | None]:
    """Indices with masks as the places at which they are true, as shapes hang on those."""
    found: list[Tensor | None] = []
    for index in indices:
        if index is not None and index.dtype == torch.bool:
            found += index.nonzero().unbind(1)
        else:
            found.append(index)
    return found


def _count(values: Tensor, mask: Tensor) -> int:
    """Entries that a mask takes."""
    return int(mask.expand(values.shape).sum())


_FACTORIES = {
    aten.empty.memory_format,
    aten.empty_strided.default,
    aten.zeros.default,
    aten.ones.default,
    aten.full.default,
    aten.rand.default,
    aten.randn.default,
}
"""What makes tensors of nothing."""


def _makes_numbers(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an operation without tensors makes floating-point ones."""
    if func not in _FACTORIES:
        return False
    dtype = kwargs.get("dtype")
    if dtype is None and func is aten.full.default and not isinstance(args[1], float):
        return False
    return (dtype or torch.get_default_dtype()).is_floating_point


class DryRun(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs torch without numbers while it is entered.

    Where code looks at a number that is not there, it learns that nothing is wrong: all values are
    finite, none is missing, and differences are 0.

    Args:
        device: Kind of the device on which the fake tensors are: its kernels are the ones whose
            results are counted.
        wide: See :class:`Allocations`.
    """

    def __init__(self, device: str, wide: int | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = torch.device(device)
        self.allocations = Allocations(wide)
        self._fakes = FakeTensorMode(allow_non_fake_inputs=True)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run one operation, on numbers where all are there."""
        kwargs = kwargs or {}
        tensors = [*_tensors((args, kwargs.values()))]
        if any(isinstance(tensor, FakeTensor) for tensor in tensors):
            if func in _ANSWERS and isinstance(tensors[0], FakeTensor):
                return _ANSWERS[func](*args)
            if func in _INDEXED:
                args = (args[0], _places(args[1]), *args[2:])
            if func is aten.masked_select.default:
                func, args = aten.new_empty.default, (args[0], [_count(*args)])
            args = _with(args, self._fake)
            kwargs = {name: _with(value, self._fake) for name, value in kwargs.items()}
            with self._fakes:
                found = func(*args, **kwargs)
        elif not tensors and _makes_numbers(func, args, kwargs):
            with self._fakes:
                found = func(*args, **{**kwargs, "device": self.device})
        else:
            found = func(*args, **kwargs)
        for tensor in _tensors(found):
            self.allocations.note(tensor)
        return found

    def _fake(self, leaf: Tensor) -> Tensor:
        if isinstance(leaf, FakeTensor):
            return leaf
        if self.device.type == leaf.device.type or not leaf.dim():
            return self._fakes.from_tensor(leaf)
        moved = leaf.to("meta")
        return self._fakes.fake_tensor_converter.from_meta_and_device(
            self._fakes, moved, self.device
        )
