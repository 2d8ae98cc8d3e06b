"""Activation profiles by recipe and length, traced on first need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Thread
from time import monotonic, sleep

from batchplan.api.request import Request
from batchplan.errors import SpecError, TraceError
from batchplan.profile import ActivationProfile
from batchplan.spec import Caveat, Recipe
from batchplan.tracer import activation_profile, profile_key, stop_workers

OnProgress = Callable[[str], None]

_STOP_SECONDS = 2.0
"""How long an interrupted trace is given to see its workers end."""


class Profiles:
    """The profile of each way of running one model, and the versions that made them."""

    def __init__(self, request: Request, on_progress: OnProgress | None) -> None:
        self._request = request
        self._on_progress = on_progress
        self._first: ActivationProfile | None = None
        self._known: dict[tuple[object, ...], ActivationProfile] = {}
        self._warnings: list[str] = []

    @property
    def num_params(self) -> int:
        """Parameters of the model, adapters left out, as the first profile or the user says."""
        given = self._request.num_params
        return given or (0 if self._first is None else self._first.num_params)

    @property
    def num_trainable_params(self) -> int:
        """Parameters that train; all of them where only their number is known."""
        return self.num_params if self._first is None else self._first.trainable_params

    @property
    def versions(self) -> dict[str, str]:
        """Packages that ran the model's code; empty when none did."""
        return {} if self._first is None else dict(self._first.versions)

    @property
    def caveats(self) -> tuple[Caveat, ...]:
        """What went wrong without changing an answer: a cache that cannot be used, told once."""
        # Locking, writing and every recipe meet the same trouble, each in words of its own.
        return tuple(Caveat(code="profile-cache", text=text) for text in self._warnings[:1])

    def fetch(self, recipes: Sequence[Recipe], seq_len: int) -> None:
        """Trace what is not cached of several recipes at once, each in a process of its own.

        Raises:
            TraceError: when the model's code cannot be traced.
        """
        if self._request.resolved is None or len(recipes) < 2:
            return
        failures: list[BaseException] = []

        def trace(recipe: Recipe) -> None:
            try:
                self(recipe, seq_len)
            except BaseException as error:  # raised again in the thread that asked
                failures.append(error)

        # Daemons: Ctrl-C must end us soon, and a worker that starts late ends with us.
        threads = [Thread(target=trace, args=(recipe,), daemon=True) for recipe in recipes]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        except BaseException:
            last = monotonic() + _STOP_SECONDS
            while any(thread.is_alive() for thread in threads) and monotonic() < last:
                stop_workers()
                sleep(0.02)
            raise
        if failures:
            raise failures[0]

    def __call__(self, recipe: Recipe, seq_len: int) -> ActivationProfile:
        """Return the profile of ``recipe`` at ``seq_len``.

        Raises:
            TraceError: when the model's code cannot be traced.
        """
        request = self._request
        if request.resolved is None:
            raise SpecError("--params has no model to trace.")
        key = profile_key(recipe, seq_len, request.library)
        if key not in self._known:
            self._known[key] = self._trace(recipe, seq_len)
            self._first = self._first or self._known[key]
        return self._known[key]

    def _trace(self, recipe: Recipe, seq_len: int) -> ActivationProfile:
        request = self._request
        try:
            return activation_profile(
                config=request.traced_config,
                recipe=recipe,
                seq_len=seq_len,
                model_ref=request.model_text or "",
                python=request.python,
                trust_remote_code=request.trust_remote_code,
                library=request.library,
                on_progress=self._on_progress,
                on_warning=self._warnings.append,
            )
        except TraceError as error:
            if request.beyond_model is None:
                raise
            # Positions that are learned end where their table does, and that is why.
            raise TraceError(f"{request.beyond_model} {error}") from error
