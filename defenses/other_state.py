"""What a user's model reaches besides its `state_dict`.

Tensors and modules may be in attributes, lists, buffers that are not persistent, closures, and global variables, in
packed weights of quantized layers, and in the code of TorchScript.
"""

from __future__ import annotations

import dis
import functools
import hashlib
import types
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from manifold_bench.defenses.content import PLAIN, content
from manifold_bench.defenses.identity import is_of_users

Held = Tensor | np.ndarray | torch.ScriptObject
"""What holds numbers; the last are such as packed weights of quantized layers."""


def other_state_sha256(module: nn.Module) -> str | None:
    """Return a hash of the tensors and arrays outside the `state_dict` of a module; None where there are none."""
    digest, found = hashlib.sha256(), False
    for one in tensors_outside_the_state(module):
        try:
            parts = list(content(one))
        except (RuntimeError, TypeError, ValueError):  # not initialised, without data or not to be read
            continue
        found = True
        for part in parts:
            digest.update(part)
    return digest.hexdigest() if found else None


def tensors_outside_the_state(module: nn.Module) -> Iterator[Held]:
    """Yield each tensor or array of numbers that a module reaches outside its `state_dict`, in an order that stays."""
    state = list(module.state_dict(keep_vars=True).values())  # kept: an `id` lasts as long as its object
    known = {id(tensor) for tensor in state}
    for one in reached_from(module):
        if isinstance(one, torch._C.ScriptModule) or (isinstance(one, np.ndarray) and one.dtype.hasobject):
            continue
        if isinstance(one, (Tensor, np.ndarray, torch.ScriptObject)) and id(one) not in known:
            yield one


def reached_from(root: object) -> Iterator[object]:
    """Yield an object and all that it reaches, each once.

    Followed are modules, lists, tuples and dicts, and classes, functions and objects of users' code. Of the objects of
    libraries, only their modules are.
    """
    seen: dict[int, object] = {}  # the objects as well, since the `id` of one that is gone may be another's
    waiting = [root]
    while waiting:
        one = waiting.pop()
        if id(one) not in seen:
            seen[id(one)] = one
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
    if isinstance(one, torch.jit.ScriptFunction):
        return _constants(one)
    if isinstance(one, torch._C.ScriptModule):
        return _of_script(one)
    if isinstance(one, types.FunctionType):
        if _is_followed(one.__module__ or ""):
            return _of_function(one)
        return _closure(one) if (one.__module__ or "").startswith("manifold_bench.") else []  # it may wrap a model
    if isinstance(one, type):
        return list(vars(one).values()) if _is_followed(one.__module__) else []
    library = type(one).__module__
    attributes = list(vars(one).values()) if isinstance(getattr(one, "__dict__", None), dict) else []
    attributes.sort(key=lambda value: isinstance(value, torch._C.ScriptModule))  # what Python holds comes first
    if _is_followed(library):
        return [*attributes, *type(one).__mro__]
    if library.startswith("manifold_bench."):  # `from_art` has a copy of the module of ART's classifier
        attributes = [value for value in attributes if not type(value).__module__.startswith("art.")]
    if isinstance(one, nn.Module):
        return attributes
    return [value for value in attributes if isinstance(value, nn.Module) and not isinstance(one, types.ModuleType)]


def _is_followed(module: str) -> bool:
    """Return whether all that belongs to a module is followed: users' code, and Foolbox, which wraps users' models."""
    return is_of_users(module) or module.partition(".")[0] == "foolbox"


def _of_script(module: Any) -> Iterator[object]:  # torch has no types for what is used of it
    """Yield the attributes and the parts of a module of TorchScript, and the constants of its code.

    Weights are constants once the module is frozen.
    """
    kind: Any = torch._C.ConcreteModuleType.from_jit_type(module._type())
    for name in (*kind.get_attributes(), *(name for name, _ in kind.get_modules())):
        yield module.getattr(name)
    for name in module._method_names():
        yield from _constants(module._get_method(name))


def _constants(function: Any) -> Iterator[object]:  # a function or a method, whose graphs have no types
    """Yield the constants in the code of TorchScript."""
    graph = function.inlined_graph  # its nodes live no longer than it does
    for node in graph.findAllNodes("prim::Constant"):
        yield node.output().toIValue()


def _of_function(function: types.FunctionType) -> Iterator[object]:
    """Yield what a function reaches: its defaults, its closure, and the global variables that its code names.

    Of a module of users, these are the attributes that the code names.
    """
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    yield from _closure(function)
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


def _closure(function: types.FunctionType) -> Iterator[object]:
    """Yield the values of the variables of outer functions that a function uses."""
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not assigned yet
            continue
