"""How a worker is started: the command, its surroundings, and torchrun for several ranks."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from batchplan.prober.trial import Device, Job

PACKAGE = Path(__file__).parents[1]
PARTS = ("tracer", "prober")
"""Whose worker packages a trial needs."""

# The worker's packages are loaded by path: the interpreter may not have batchplan, or another
# release of it, and must not see modules that lie in the current folder.
_BOOTSTRAP = """
import sys
if sys.path[:1] == [""]:
    del sys.path[0]
import importlib.util, types
where, parts = sys.argv[1], sys.argv[2].split(",")
for name in ("batchplan", *(f"batchplan.{part}" for part in parts)):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = []
for part in parts:
    name, folder = f"batchplan.{part}.worker", f"{where}/{part}/worker"
    spec = importlib.util.spec_from_file_location(
        name, folder + "/__init__.py", submodule_search_locations=[folder]
    )
    package = importlib.util.module_from_spec(spec)
    sys.modules[name] = package
    spec.loader.exec_module(package)
main = importlib.import_module(f"batchplan.{parts[-1]}.worker.main").main
sys.exit(main(sys.argv[3:]))
"""

# With one arena and every block of 64 KiB or more mapped on its own, what the kernel counts for
# the process is what is alive, to the page, and glibc counts its highest point.
# oneDNN would keep a megabyte of code for every shape it meets, which is no tensor.
# Sources: mallopt(3), environment variables; oneDNN, developer guide, "Primitive Cache".
_EXACT_MALLOC = {
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "0",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MALLOC_TOP_PAD_": "0",
    "MALLOC_MMAP_MAX_": "1048576",
}


def worker_command(
    *,
    python: Path | None,
    parts: Sequence[str] = PARTS,
    num_ranks: int = 1,
    request_file: Path | None = None,
) -> list[str]:
    """Return the command line; several ranks read their request in a file, one on stdin.

    Args:
        python: the interpreter; None is ours.
        parts: whose worker packages are loaded; the last one's ``main`` runs.
        num_ranks: processes that torchrun starts where there is a file.
        request_file: holds the request.
    """
    own = str(python or sys.executable)
    worker = (own, "-c", _BOOTSTRAP, str(PACKAGE), ",".join(parts))
    if request_file is None:
        return [*worker]
    return [
        *(own, "-m", "torch.distributed.run"),
        *("--standalone", "--nproc-per-node", str(num_ranks), "--no-python"),
        *(*worker, str(request_file)),
    ]


def environment(job: Job) -> dict[str, str]:
    """Return what a trial's worker has in its environment beside ours."""
    added: dict[str, str] = {"PYTHONUNBUFFERED": "1"}
    if job.device is Device.CPU:
        # One thread, unless the user's environment has another number: peaks then repeat exactly.
        threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        added |= _EXACT_MALLOC | threads | {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    if not job.weights and not job.trust_remote_code:
        added |= {"HF_HUB_OFFLINE": "1"}
    if job.recipe.expandable_segments:
        added |= _expandable(os.environ)
    return added


def _expandable(given: Any) -> dict[str, str]:
    name = "PYTORCH_CUDA_ALLOC_CONF"
    settings = [part for part in given.get(name, "").split(",") if part]
    if not any(part.startswith("expandable_segments") for part in settings):
        settings.append("expandable_segments:True")
    return {name: ",".join(settings)}
