"""joblib's dask backend, made to say when a worker died."""

from __future__ import annotations

from typing import Any

NAME = "probnn-dask"


class _Failure:
    """Stands for the result of a task that has none."""

    def __init__(self, error: BaseException):
        self.error = error


def register() -> str:
    """Register the backend with joblib, and give its name.

    joblib's own (1.6) calls back for results only: a task whose worker died is never reported, and a generator of
    results waits for it without end. Here its error is passed on by the same way as a result.

    Raises:
        ImportError: dask.distributed is not installed.
    """
    from joblib import register_parallel_backend
    from joblib._dask import DaskDistributedBackend

    class Backend(DaskDistributedBackend):
        def effective_n_jobs(self, n_jobs: int) -> int:
            # With one worker left joblib would run tasks in the user's own process, where the next one may die too.
            return max(2, super().effective_n_jobs(n_jobs))

        def submit(self, func: Any, callback: Any = None) -> Any:
            future = super().submit(func, callback)

            def done(finished: Any) -> None:
                error = finished.exception()
                if error is not None and callback is not None:
                    callback(_Failure(error))

            future.add_done_callback(done)
            return future

        def retrieve_result_callback(self, out: Any) -> Any:
            if isinstance(out, _Failure):
                raise out.error
            return super().retrieve_result_callback(out)

    register_parallel_backend(NAME, Backend)
    return NAME
