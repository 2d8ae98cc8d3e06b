"""Loops with one mistake each, to see that it is found and called by its name."""

from __future__ import annotations

from dataclasses import replace

from .subjects import Loop, Subject, Task


class _MissingDivision(Loop):
    def shares(self, targets: list[int]) -> list[float]:
        return [1.0] * len(targets)


class _DividedTwice(Loop):
    def shares(self, targets: list[int]) -> list[float]:
        return [share / len(targets) for share in super().shares(targets)]


class _MeanOfMeans(Loop):
    def shares(self, targets: list[int]) -> list[float]:
        return [1.0 / len(targets)] * len(targets)


class _SummedTokens(Loop):
    def shares(self, targets: list[int]) -> list[float]:
        return [float(count) for count in targets]


class _ConfiguredSteps(Loop):
    def shares(self, targets: list[int]) -> list[float]:
        short = len(targets) / self.task.accum_steps
        return [share * short for share in super().shares(targets)]


class _LastWindowDropped(Loop):
    def __init__(self, task: Task) -> None:
        own = len(task.own) - len(task.own) % task.accum_steps
        whole = task.micro_batches[: own * task.num_ranks]
        super().__init__(replace(task, micro_batches=whole))


class _RankTokens(Loop):
    def over_ranks(self, count: int) -> int:
        return count * self.task.num_ranks


class _ZeroGradForgotten(Loop):
    def after_step(self) -> None:
        self.scheduler.step()


class _ZeroGradEveryMicroBatch(Loop):
    _is_last = False

    def shares(self, targets: list[int]) -> list[float]:
        self._left = len(targets)
        return super().shares(targets)

    def after_backward(self) -> None:
        self._left -= 1
        if self._left:
            self.optimizer.zero_grad()


class _ClipEveryMicroBatch(Loop):
    def after_backward(self) -> None:
        if self.task.max_norm:
            self.clip()

    def before_step(self) -> None:
        pass


class _ClipMissing(Loop):
    def before_step(self) -> None:
        pass


class _SchedulerEveryMicroBatch(Loop):
    def after_backward(self) -> None:
        self.scheduler.step()

    def after_step(self) -> None:
        self.optimizer.zero_grad()


class _StepEveryMicroBatch(Loop):
    def after_backward(self) -> None:
        self.optimizer.step()
        self.after_step()

    def before_step(self) -> None:
        # The last micro-batch has stepped already.
        self.record.optimizer_steps -= 1
        self.record.scheduler_steps -= 1


def _subject(loop: type[Loop]) -> Subject:
    return lambda task: loop(task).run()


FAULTS: dict[str, Subject] = {
    "fault:missing-division": _subject(_MissingDivision),
    "fault:divided-twice": _subject(_DividedTwice),
    "fault:mean-of-means": _subject(_MeanOfMeans),
    "fault:summed-tokens": _subject(_SummedTokens),
    "fault:configured-steps": _subject(_ConfiguredSteps),
    "fault:last-window-dropped": _subject(_LastWindowDropped),
    "fault:rank-tokens": _subject(_RankTokens),
    "fault:zero-grad-forgotten": _subject(_ZeroGradForgotten),
    "fault:zero-grad-every-micro-batch": _subject(_ZeroGradEveryMicroBatch),
    "fault:clip-every-micro-batch": _subject(_ClipEveryMicroBatch),
    "fault:clip-missing": _subject(_ClipMissing),
    "fault:scheduler-every-micro-batch": _subject(_SchedulerEveryMicroBatch),
    "fault:step-every-micro-batch": _subject(_StepEveryMicroBatch),
}
