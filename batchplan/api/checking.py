"""``check``: what an existing trainer config makes of a run, whether it fits, and its mistakes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from os import PathLike, fspath
from pathlib import Path

from batchplan.api.check_answer import Asked, CheckAnswer
from batchplan.api.check_files import Config, flat, missing_files, read_all
from batchplan.api.check_memory import bill_of, does_not_fit, model_name, model_of, recipe_of
from batchplan.api.checks import whole
from batchplan.api.policies import row_value
from batchplan.api.profiles import OnProgress
from batchplan.checker import Run, Subject, detect_trainer, examine, reconstruct
from batchplan.checker.beside import Named
from batchplan.checker.detect import OWN_LOOP
from batchplan.checker.examine import in_order
from batchplan.checker.launched import as_programs, with_script_flags
from batchplan.checker.launcher import with_launcher
from batchplan.checker.loops import with_loops
from batchplan.checker.prepared import with_prepared
from batchplan.checker.rates import with_text_rate
from batchplan.checker.roles import LAUNCH, SCRIPT, main_first, roles_of
from batchplan.configfile import ConfigFile
from batchplan.errors import SpecError, TraceError
from batchplan.sources import find_gpu
from batchplan.sources.trainer_keys import load_trainer_keys
from batchplan.spec import Caveat
from batchplan.tracer.environment import library_versions
from batchplan.trainers.defaults import NEWEST, assumed_release, check_trainer
from batchplan.trainers.format import format_of
from batchplan.trainers.reading import Reading


def check(
    *configs: Config | Iterable[Config],
    trainer: str | None = None,
    gpu: str | None = None,
    devices: int | str | None = None,
    nodes: int | str | None = None,
    model: str | None = None,
    seq_len: int | str | None = None,
    python: str | PathLike[str] | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    offline: bool = False,
    on_progress: OnProgress | None = None,
) -> CheckAnswer:
    """Return what the config files of one run make of it, and what is wrong with them.

    Nothing in a file is executed.

    Args:
        *configs: the trainer's file, and any that belong to it: accelerate's, DeepSpeed's, the
            launch script, the training script. Files that these name are read too.
        trainer: whose they are; None tells by their keys.
        gpu: the device, for a verdict on memory; None gives none.
        devices: data-parallel devices over all nodes; None is what the files say, or 1.
        nodes: machines; None is what the files say.
        model: Hub id, local folder or catalog name; None is what the files say.
        seq_len: tokens a sequence; None is what the files say, or the trainer's default.
        python: the interpreter of the environment that will train; None is our own.
        revision: of the model on the Hub.
        trust_remote_code: let the model's own code run.
        offline: never ask the network.
        on_progress: told in words what a first trace is doing.

    Raises:
        SpecError: when a file cannot be read, nobody knows whose it is, or an input is wrong.
    """
    names = [fspath(name) for name in flat(configs)]
    if not names:
        raise SpecError("Name a config file.")
    if trainer is not None:
        check_trainer(trainer)
    asked = Asked(
        trainer=trainer,
        gpu=gpu,
        devices=None if devices is None else whole("devices", devices),
        nodes=None if nodes is None else whole("nodes", nodes),
        model=model,
        seq_len=None if seq_len is None else whole("seq_len", seq_len),
        python=None if python is None else Path(python),
        revision=revision,
        trust_remote_code=trust_remote_code,
        offline=offline,
    )
    if gpu is not None:
        find_gpu(gpu)
    files, missing = read_all(names)
    return _answer(asked, files, tuple(names), missing=missing, on_progress=on_progress)


def _answer(
    asked: Asked,
    files: tuple[ConfigFile, ...],
    given: tuple[str, ...],
    *,
    missing: tuple[Named, ...],
    on_progress: OnProgress | None = None,
) -> CheckAnswer:
    trainer = asked.trainer or detect_trainer(files, load_trainer_keys)
    form = format_of(trainer)
    roles = roles_of(files)
    files = main_first(files, roles)
    reading = form.read(as_programs(files, trainer))
    for more in (with_loops, with_script_flags, with_prepared, with_text_rate):
        reading = more(reading, files)
    reading = with_launcher(reading, files, roles)
    versions = _versions(asked.python)
    caveats: list[Caveat] = []
    name = model_name(asked, reading, files[0])
    model = model_of(asked, name, caveats)
    run = reconstruct(
        reading,
        versions=versions,
        num_ranks=asked.devices,
        num_nodes=asked.nodes,
        seq_len=asked.seq_len,
        resolve=lambda row: row_value(row, None if model is None else model.config),
    )
    caveats += _assumed(asked, roles, reading, run)
    recipe = recipe_of(run, caveats)
    gpu = None if asked.gpu is None else find_gpu(asked.gpu)
    bill = None
    if recipe is not None and gpu is not None and name is not None and model is not None:
        bill = bill_of(asked, name, trainer, run, recipe, caveats, on_progress)
    subject = Subject(
        trainer=trainer,
        files=files,
        roles=roles,
        reading=reading,
        run=run,
        versions={**NEWEST, **versions},
        keys_of=load_trainer_keys,
        gpu=gpu,
        num_params=None if bill is None else bill.num_params,
        asked_devices=asked.devices,
        asked_trainer=asked.trainer,
    )
    findings = [*missing_files(missing), *examine(subject)]
    if bill is not None and not bill.fits:
        findings.append(does_not_fit(asked, reading, run, bill))
    return CheckAnswer(
        asked=asked,
        files=files,
        given=given,
        roles=roles,
        trainer=trainer,
        supports=form.supports,
        release=assumed_release(trainer, versions),
        reading=reading,
        model=name,
        run=run,
        recipe=recipe,
        estimate=bill,
        gpu=gpu,
        findings=in_order(findings, files),
        caveats=tuple(caveats),
        asked_of=lambda files: _answer(asked, files, given, missing=missing),
    )


def _versions(python: Path | None) -> dict[str, str]:
    """Return what is installed where the run will train; nothing where torch is not."""
    try:
        return library_versions(python)
    except TraceError:
        return {}


def _assumed(
    asked: Asked, roles: Mapping[str, str], reading: Reading, run: Run
) -> Iterator[Caveat]:
    """Yield what neither the files nor the user say: the trainer, and of the batch."""
    only_scripts = set(roles.values()) <= {SCRIPT, LAUNCH}
    if asked.trainer is None and reading.trainer == OWN_LOOP and only_scripts:
        text = "Taken for a training loop of your own; --trainer says otherwise."
        yield Caveat(code="own-loop", text=text)
    if asked.devices is None and reading.of("num_ranks") is None:
        text = "No file says how many devices train: 1 is assumed (--devices)."
        yield Caveat(code="devices-assumed", text=text)
    if run.seq_len_source:
        text = (
            f"No file says how long a sequence is: {run.seq_len:,} tokens are {reading.trainer}'s "
            f"default ({run.seq_len_source})."
        )
        yield Caveat(code="seq-len-assumed", text=text)
