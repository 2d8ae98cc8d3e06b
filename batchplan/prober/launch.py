"""How a worker is started: the command, its surroundings, and torchrun for several ranks."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from batchplan.prober.trial import Device, Job

PACKAGE = Path(__file__).parents[1]

# The worker's packages are loaded by path: the interpreter may not have batchplan, or another
# release of it, and must not see modules that lie in the current folder.
_BOOTSTRAP = """
import sys
if sys.path[:1] == [""]:
    del sys.path[0]
import importlib.util, types
where = sys.argv[1]
for name in ("batchplan", "batchplan.tracer", "batchplan.prober"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = []
for part in ("tracer", "prober"):
    name, folder = f"batchplan.{part}.worker", f"{where}/{part}/worker"
    spec = importlib.util.spec_from_file_location(
        name, folder + "/__init__.py", submodule_search_locations=[folder]
    )
    package = importlib.util.module_from_spec(spec)
    sys.modules[name] = package
    spec.loader.exec_module(package)
from batchplan.prober.worker.main import main
sys.exit(main(sys.argv[2:]))
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


def command(job: Job, request_file: Path | None = None) -> list[str]:
    """Return the command line; several ranks read their request in a file, one on stdin."""
    python = str(job.python or sys.executable)
    if request_file is None:
        return [python, "-c", _BOOTSTRAP, str(PACKAGE)]
    return [
        *(python, "-m", "torch.distributed.run"),
        *("--standalone", "--nproc-per-node", str(job.num_ranks), "--no-python"),
        *(python, "-c", _BOOTSTRAP, str(PACKAGE), str(request_file)),
    ]


def environment(job: Job, folder: Path) -> dict[str, str]:
    """Return the worker's environment; its temporary files are made in ``folder``."""
    added: dict[str, str] = {"TMPDIR": str(folder), "PYTHONUNBUFFERED": "1"}
    if job.device is Device.CPU:
        # One thread, unless the user's environment has another number: peaks then repeat exactly.
        threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        added |= _EXACT_MALLOC | threads | {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    if not job.weights and not job.trust_remote_code:
        added |= {"HF_HUB_OFFLINE": "1"}
    if job.recipe.expandable_segments:
        added |= _expandable(os.environ)
    return {**os.environ, **added}


def _expandable(given: Any) -> dict[str, str]:
    name = "PYTORCH_CUDA_ALLOC_CONF"
    settings = [part for part in given.get(name, "").split(",") if part]
    if not any(part.startswith("expandable_segments") for part in settings):
        settings.append("expandable_segments:True")
    return {name: ",".join(settings)}
