"""One thread for linear algebra.

The last digits of LAPACK's answers depend on how many threads it has, and decisions are to be the same on any machine.
And with more of them matrices of some hundred rows take longer: on cores that trials keep busy, each waits, spinning,
for another that is not let in.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import scipy.linalg  # noqa: F401 - what is loaded by now is what is limited; NumPy's is, too
import threadpoolctl


def one_thread() -> AbstractContextManager[Any]:
    """While it is entered, NumPy's and SciPy's BLAS have one thread, in all of the process."""
    limited: AbstractContextManager[Any] = _controller().limit(limits=1, user_api="blas")
    return limited


@cache
def _controller() -> threadpoolctl.ThreadpoolController:
    return threadpoolctl.ThreadpoolController()
