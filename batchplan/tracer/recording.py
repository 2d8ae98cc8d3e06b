"""Whole optimizer steps: recorded once by the worker, played as a run would, several in a row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchplan.allocator import Allocation, Recording
from batchplan.errors import TraceError
from batchplan.spec import Batch, Recipe
from batchplan.tracer.request import recording_request
from batchplan.tracer.runner import run_worker

STEPS = 3
"""Optimizer steps that are played. The first makes the moments, the second meets them with the
cached memory of the first, and from the third on nothing new happens."""

WORKSPACES = 2
"""cuBLAS handles: the forward's stream and autograd's thread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRun:
    """What the worker recorded, and what ran it."""

    recording: Recording
    versions: dict[str, str]
    architecture: str
    num_params: int
    """Parameters of the model's own, adapters left out."""
    num_trainable_params: int
    notes: tuple[str, ...]
    """What the worker could not do exactly, in words."""


def record_step(
    *,
    config: dict[str, Any],
    recipe: Recipe,
    batch: Batch,
    workspace_bytes: int,
    model_ref: str = "",
    python: Path | None = None,
    trust_remote_code: bool = False,
    library: str = "transformers",
    on_progress: Callable[[str], None] | None = None,
) -> RecordedRun:
    """Run a whole step of the whole model on fake tensors and return its story.

    ``workspace_bytes`` is what one cuBLAS handle takes of the allocator on the device. More than
    two micro-batches are recorded as two, which allocate alike from the second on.

    Raises:
        SpecError: when the recipe cannot be recorded.
        TraceError: when the model's code cannot be run.
    """
    request = recording_request(
        config=config,
        model_ref=model_ref,
        recipe=recipe,
        batch=batch,
        trust_remote_code=trust_remote_code,
        library=library,
    )
    reply = run_worker(request, python=python, on_progress=on_progress)
    try:
        return RecordedRun(
            recording=assemble(reply, batch.accum_steps, workspace_bytes),
            versions={str(name): str(version) for name, version in reply["versions"]},
            architecture=str(reply["architecture"]),
            num_params=int(reply["num_params"]),
            num_trainable_params=int(reply["num_trainable_params"]),
            notes=tuple(str(note) for note in reply["notes"]),
        )
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise TraceError(f"The worker's recording is damaged: {error!r}.") from error


def assemble(reply: Mapping[str, Any], accum_steps: int, workspace_bytes: int) -> Recording:
    """Return the recording of ``STEPS`` optimizer steps from the worker's sections of one."""
    player = _Player(reply, num_fetched=accum_steps)
    player.play("start")
    workspace = Allocation(num_bytes=workspace_bytes, kind="workspace", module="", op="cublas")
    for _ in range(WORKSPACES):
        player.hold(workspace)
    micro_batches = reply["micro_batches"]
    for step in range(1, STEPS + 1):
        player.play("fetch")
        for number, section in enumerate(micro_batches, start=1):
            player.play(section, f"step {step}, micro-batch {number} of {len(micro_batches)}")
        player.play("first update" if step == 1 else "update", f"step {step}")
        player.play("end of step", f"step {step}")
        player.play("drop")
    return player.recording()


class _Player:
    """Plays sections one after another; each time round an allocation is a new one."""

    def __init__(self, reply: Mapping[str, Any], *, num_fetched: int) -> None:
        self._sections: Mapping[str, Sequence[int]] = reply["sections"]
        self._log: Sequence[int] = reply["log"]
        self._phases: Mapping[int, str] = dict(reply["phases"])
        self._originals = tuple(_allocations(reply, num_fetched))
        self._allocations: list[Allocation] = []
        self._events: list[int] = []
        self._marks: list[tuple[int, str]] = []
        self._number_of: dict[int, int] = {}

    def play(self, section: str, where: str = "") -> None:
        start, end = self._sections[section]
        for at in range(start, end + 1):
            # A phase may start where nothing follows: a fused update makes and frees nothing.
            if where and (at < end or start == end) and at in self._phases:
                self._marks.append((len(self._events), f"{self._phases[at]}, {where}"))
            if at == end:
                break
            event = self._log[at]
            if event >= 0:
                self._number_of[event] = len(self._allocations)
                self.hold(self._originals[event])
            else:
                self._events.append(~self._number_of.pop(~event))

    def hold(self, allocation: Allocation) -> None:
        self._events.append(len(self._allocations))
        self._allocations.append(allocation)

    def recording(self) -> Recording:
        return Recording(
            allocations=tuple(self._allocations),
            events=tuple(self._events),
            marks=tuple(self._marks),
        )


def _allocations(reply: Mapping[str, Any], num_fetched: int) -> Iterator[Allocation]:
    names = reply["names"]
    columns = ("num_bytes", "kind", "module", "op")
    for num_bytes, kind, module, op in zip(*(reply[name] for name in columns), strict=True):
        # The trainer fetches all K micro-batches before the first forward.
        copies = num_fetched if names[kind] == "input batch" else 1
        yield Allocation(
            num_bytes=num_bytes * copies, kind=names[kind], module=names[module], op=names[op]
        )
