"""What a user's model reaches besides its `state_dict`.

Tensors and modules may be in attributes, lists, buffers that are not persistent, closures, and global variables.
"""

from __future__ import annotations

import dis
import functools
import hashlib
import types
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from manifold_bench.defenses.identity import is_of_users

PLAIN = (int, float, complex, str, bytes, type(None))
"""Types of values that reach nothing."""


def other_state_sha256(module: nn.Module) -> str | None:
    """Return a hash of the tensors and arrays outside the `state_dict` of a module; None where there are none."""
    digest, found = hashlib.sha256(), False
    for one in tensors_outside_the_state(module):
        try:
            plain = one.detach().cpu().resolve_conj().resolve_neg().contiguous() if isinstance(one, Tensor) else one
            if isinstance(plain, np.ndarray) and plain.dtype.hasobject:
                continue
            content = plain.reshape(-1).view(torch.uint8).numpy() if isinstance(plain, Tensor) else plain
            digest.update(f"{one.dtype}|{tuple(one.shape)}|".encode() + np.ascontiguousarray(content).tobytes())
        except (RuntimeError, TypeError, ValueError):  # sparse, nested or not initialised: it has no plain content
            continue
        found = True
    return digest.hexdigest() if found else None


def tensors_outside_the_state(module: nn.Module) -> Iterator[Tensor | np.ndarray]:
    """Yield each tensor or array of numbers that a module reaches outside its `state_dict`, in an order that stays."""
    known = {id(tensor) for tensor in module.state_dict(keep_vars=True).values()}
    for one in reached_from(module):
        if isinstance(one, (Tensor, np.ndarray)) and id(one) not in known:
            yield one


def reached_from(root: object) -> Iterator[object]:
    """Yield an object and all that it reaches, each once.

    Followed are modules, lists, tuples and dicts, and classes, functions and objects of users' code.
    """
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        one = waiting.pop()
        if id(one) not in seen:
            seen.add(id(one))
            yield one
            waiting += [inner for inner in reversed(list(_within(one))) if not isinstance(inner, PLAIN)]


def _within(one: object) -> Iterable[object]:
    """Return the objects that another one holds, if it is a container, a module, or made by users' code."""
    if isinstance(one, dict):
        return list(one.values())
    if isinstance(one, (tuple, list)):
        return one
    if isinstance(one, functools.partial):
        return [one.func, *one.args, *one.keywords.values()]
    if isinstance(one, types.MethodType):
        return [one.__self__, one.__func__]
    if isinstance(one, (staticmethod, classmethod)):
        return [one.__func__]
    if isinstance(one, property):
        return [one.fget]
    if isinstance(one, functools.cached_property):
        return [one.func]
    if isinstance(one, types.FunctionType):
        return _of_function(one) if is_of_users(one.__module__) else []
    if isinstance(one, type):
        return list(vars(one).values()) if is_of_users(one.__module__) else []
    users = is_of_users(type(one).__module__)
    attributes = list(vars(one).values()) if isinstance(one, nn.Module) or (users and hasattr(one, "__dict__")) else []
    return [*attributes, *(cls for cls in type(one).__mro__ if users)]


def _of_function(function: types.FunctionType) -> Iterator[object]:
    """Yield what a function reaches: its defaults, its closure, and the global variables that its code names.

    Of a module of users, these are the attributes that the code names.
    """
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    codes = [function.__code__]
    while codes:
        code = codes.pop(0)
        codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
        loaded = dict.fromkeys(one.argval for one in dis.get_instructions(code) if one.opname.startswith("LOAD_GLOBAL"))
        for value in (function.__globals__[name] for name in loaded if name in function.__globals__):
            if isinstance(value, types.ModuleType) and is_of_users(value.__name__):
                yield from (vars(value)[name] for name in code.co_names if name in vars(value))
            else:
                yield value
