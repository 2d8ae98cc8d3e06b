"""What the run of a config weighs: its model, its recipe and the bill, as far as they are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from batchplan.api.check_answer import Asked
from batchplan.api.check_files import is_there
from batchplan.api.checks import checked
from batchplan.api.documents import recipe_document
from batchplan.api.estimating import EstimateAnswer, estimate
from batchplan.api.profiles import OnProgress
from batchplan.checker import Run
from batchplan.configfile import ConfigFile, Finding, Severity
from batchplan.errors import SourceError, SpecError, TraceError
from batchplan.sources import ResolvedModel, resolve_model
from batchplan.spec import Caveat, Recipe
from batchplan.trainers.reading import Reading
from batchplan.units import format_bytes

DOES_NOT_FIT = "does-not-fit"


def model_name(asked: Asked, reading: Reading, main: ConfigFile) -> str | None:
    """Return the model as it can be found from here: a folder may be named beside the file."""
    name = asked.model or reading.values.get("model")
    if not isinstance(name, str) or not name:
        return None
    beside = Path(main.name).parent / name
    return str(beside) if asked.model is None and is_there(beside) else name


def model_of(asked: Asked, name: str | None, caveats: list[Caveat]) -> ResolvedModel | None:
    """Return the model, or None and a caveat that says why there is none."""
    if name is None:
        text = "No file names the model: --model NAME lets memory be judged."
        caveats.append(Caveat(code="model-unknown", text=text))
        return None
    try:
        model = resolve_model(
            name,
            revision=asked.revision,
            trust_remote_code=asked.trust_remote_code,
            offline=asked.offline,
        )
    except (SourceError, SpecError) as error:
        text = f"The model's config cannot be had, so memory is not judged: {error}"
        caveats.append(Caveat(code="model-unavailable", text=text))
        return None
    if model.needs_remote_code and not asked.trust_remote_code:
        text = f"{name} runs code of its own repository: --trust-remote-code lets memory be judged."
        caveats.append(Caveat(code="model-unavailable", text=text))
        return None
    return model


def recipe_of(run: Run, caveats: list[Caveat]) -> Recipe | None:
    """Return the recipe, or None and a caveat that says what does not go together."""
    try:
        return checked(Recipe, run.recipe_values)
    except SpecError as error:
        text = f"What the files say makes no recipe that is known: {error}"
        caveats.append(Caveat(code="recipe-unknown", text=text))
        return None


def bill_of(
    asked: Asked,
    name: str,
    trainer: str,
    run: Run,
    recipe: Recipe,
    caveats: list[Caveat],
    on_progress: OnProgress | None,
) -> EstimateAnswer | None:
    """Return the bill of the run, or None and a caveat that says why there is none."""
    fields: dict[str, Any] = {
        name: value for name, value in recipe_document(recipe).items() if value is not None
    }
    assert asked.gpu is not None
    try:
        bill = estimate(
            name,
            gpu=asked.gpu,
            devices=run.num_ranks,
            nodes=run.num_nodes,
            micro_batch=run.micro_batch,
            accum_steps=run.accum_steps,
            seq_len=run.seq_len,
            trainer=trainer,
            python=asked.python,
            revision=asked.revision,
            trust_remote_code=asked.trust_remote_code,
            offline=asked.offline,
            on_progress=on_progress,
            **fields,
        )
    except (SpecError, SourceError, TraceError) as error:
        caveats.append(Caveat(code="memory-unknown", text=f"Memory is not judged: {error}"))
        return None
    # What the trainer does by itself is told from the files' point of view already.
    caveats += (one for one in bill.caveats if one.code != "trainer-defaults")
    caveats += bill.memory.caveats
    return bill


def does_not_fit(asked: Asked, reading: Reading, run: Run, bill: EstimateAnswer) -> Finding:
    """Return the verdict on memory as an error at the key that decides the micro-batch."""
    usable, peak = bill.gpu.usable_bytes, bill.memory.peak_bytes
    over = peak - usable
    text = f"The peak is {format_bytes(peak)} of {format_bytes(usable)} usable on {bill.gpu.name}"
    if over > 0:
        text += f": {format_bytes(over)} too much."
    else:
        text += f", and its upper bound {format_bytes(bill.memory.bound_bytes)} is too much."
    command = (
        f"batchplan recommend {bill.model.id} --gpu {asked.gpu} --devices {run.num_ranks} "
        f"--trainer {reading.trainer} --method {bill.recipe.method} "
        f"--seq-len {bill.batch.seq_len} --target-sequences {run.global_batch_size}"
    )
    read_at = reading.of("micro_batch") or reading.of("model")
    return Finding(
        code=DOES_NOT_FIT,
        severity=Severity.ERROR,
        text=text,
        fix=f"Look for the same step split otherwise: {command}",
        file="" if read_at is None else read_at.file,
        line=None if read_at is None else read_at.line,
        key="" if read_at is None else read_at.key,
    )
