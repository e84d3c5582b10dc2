"""Values as bytes, for hashes: tensors of any layout, containers, and other objects by what `pickle` keeps of them."""

from __future__ import annotations

import copyreg
from collections.abc import Iterator
from types import BuiltinFunctionType, FunctionType, ModuleType

import numpy as np
import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from manifold_bench.defenses.errors import one_line

PLAIN = (int, float, complex, str, bytes, type(None))
"""Types of values that hold no other ones."""

SPELLED = (*PLAIN, torch.dtype, torch.device, torch.layout, torch.memory_format, torch.qscheme)
"""Types of values whose `repr` says everything."""

NAMED = (type, FunctionType, BuiltinFunctionType, ModuleType)
"""Types of values that are known by their names, as in a pickle."""

Bytes = bytes | memoryview
"""What a hash takes."""


def content(value: object, outer: tuple[object, ...] = ()) -> Iterator[Bytes]:
    """Yield bytes that differ for different values; they depend on no address, device or process.

    outer: the objects that hold the value. Raises ValueError for a value that has no content, as a lazy parameter, or
    none that can be read.
    """
    if isinstance(value, Tensor):
        yield from _of_tensor(value)
    elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
        yield f"{value.dtype}|{value.shape}|".encode() + np.ascontiguousarray(value).tobytes()
    elif isinstance(value, SPELLED):
        yield f"{value!r}|".encode()
    elif isinstance(value, NAMED):
        yield f"{getattr(value, '__qualname__', value.__name__)}|".encode()  # a module has only the latter
    elif id(value) in (above := [id(one) for one in outer]):
        yield f"{above.index(id(value))}|".encode()
    else:
        yield f"{type(value).__qualname__}(".encode()
        for part in _parts(value, (*outer, value)):
            yield from content(part, (*outer, value))
        yield b")"


def _parts(value: object, outer: tuple[object, ...]) -> list[object]:
    """Return the values that make up an object, in an order that stays; of a set their bytes, sorted."""
    if isinstance(value, dict):
        return list(value.items())
    if isinstance(value, (set, frozenset)):
        return [*sorted(b"".join(bytes(part) for part in content(one, outer)) for one in value)]
    if isinstance(value, (tuple, list)):
        return list(value)
    try:
        reduce = copyreg.dispatch_table.get(type(value))
        parts = reduce(value) if reduce else value.__reduce_ex__(4)
    except Exception as error:  # a user's class may raise anything
        raise ValueError(f"a {type(value).__qualname__} in it cannot be read ({one_line(error)})") from error
    return [parts] if isinstance(parts, str) else [list(one) if isinstance(one, Iterator) else one for one in parts]


def _of_tensor(tensor: Tensor) -> Iterator[Bytes]:
    """Yield type and shape of a tensor, and then its values."""
    if is_lazy(tensor):
        raise ValueError("it is a lazy parameter, which has no values yet; call the model once on images before")
    yield f"{tensor.dtype}|{tuple(tensor.shape)}|".encode() if not tensor.is_nested else b"nested|"
    parts = _parts_of_tensor(tensor.detach())
    if parts is not None:
        yield from content(parts)
    elif tensor.numel():
        plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
        yield plain.reshape(-1).view(torch.uint8).numpy().data


def _parts_of_tensor(tensor: Tensor) -> list[object] | None:
    """Return the values that make up a tensor of a special kind; None for one that is a block of memory."""
    if tensor.is_nested:
        return list(tensor.unbind())
    if is_traceable_wrapper_subclass(tensor):
        names, context = tensor.__tensor_flatten__()
        return [type(tensor), context, *((name, getattr(tensor, name)) for name in names)]
    if tensor.is_quantized:
        scheme = tensor.qscheme()
        if scheme in (torch.per_tensor_affine, torch.per_tensor_symmetric):
            return [scheme, tensor.q_scale(), tensor.q_zero_point(), tensor.int_repr()]
        scales, zeros = tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()
        return [scheme, tensor.q_per_channel_axis(), scales, zeros, tensor.int_repr()]
    if tensor.layout is torch.strided:
        return None
    if tensor.is_mkldnn:
        return [tensor.layout, tensor.to_dense()]
    entries = tensor.to_sparse_coo().coalesce()
    return [tensor.layout, entries.indices(), entries.values()]
