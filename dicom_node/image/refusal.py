"""How a step says that an image cannot be read: with a coded reason, and without a word of what stands in it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from models.reasons import Reason

_P = ParamSpec("_P")
_T = TypeVar("_T")


class NotAnalysable(Exception):
    """The image cannot be read. Its text is the reason's code and nothing else: no header value, no decoder message."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason


def attempt(otherwise: Reason, step: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Run `step`; whatever it raises comes out as NotAnalysable, `otherwise` for what has no reason of its own.

    The exception is raised outside the handler, so that the original, whose text may quote the header, hangs on
    neither `__cause__` nor `__context__`. pydicom's warnings quote values too and are dropped. A MemoryError is passed
    on: it says nothing about the image, and another try may have the memory.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return step(*args, **kwargs)
    except NotAnalysable as refused:
        reason = refused.reason
    except MemoryError:
        raise
    except Exception:
        reason = otherwise
    raise NotAnalysable(reason)
