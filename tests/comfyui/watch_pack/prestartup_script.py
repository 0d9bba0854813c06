"""Writes down who calls functions of torch.cuda, before any other pack is imported.

A file of calls, one per line: the function, and the file of this pack that it was called from,
directly or not; or nothing, where the caller was somebody else.
"""

import functools
import os
import sys
import types

import torch

PACK = os.sep + os.path.join("custom_nodes", "asyncdiff") + os.sep


def pack_file() -> str:
    """Which file of the pack stands nearest in the stack."""
    frame = sys._getframe(2)
    while frame is not None:
        if PACK in frame.f_code.co_filename:
            return frame.f_code.co_filename
        frame = frame.f_back
    return ""


def watched(name: str, function: types.FunctionType) -> types.FunctionType:
    @functools.wraps(function)
    def call(*args, **kwargs):
        with open(os.environ["WATCHED_CALLS"], "a", encoding="utf-8") as file:
            file.write(f"{name} {pack_file()}".strip() + "\n")
        return function(*args, **kwargs)

    return call


for name, value in list(vars(torch.cuda).items()):
    if isinstance(value, types.FunctionType):
        setattr(torch.cuda, name, watched(name, value))
