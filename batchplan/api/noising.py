"""``noise``: how noisy the gradients of the user's model are on the user's data."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from typing import Any, Unpack

from batchplan import __version__
from batchplan.api.checks import shown, whole
from batchplan.api.data import own_tokenizer
from batchplan.api.fields import SharedFields
from batchplan.api.learning import positive_number
from batchplan.api.noise_answer import NoiseAnswer, known
from batchplan.api.profiles import OnProgress
from batchplan.api.request import Request
from batchplan.api.subjects import AUTO, resolve_subject, subject_inputs
from batchplan.errors import SpecError
from batchplan.experiments.noise import Budget, MeasuredNoise, measure_noise
from batchplan.experiments.noise_file import Estimate, NoiseRecord, digest, save_noise
from batchplan.experiments.subject import Subject
from batchplan.learning.noise import LEVEL, NoiseScale, Ratio, noise_scale
from batchplan.prober.saving import public_name
from batchplan.sources.token_rows import DrawnRows, draw_rows
from batchplan.spec import MAX_MICRO_BATCH, Caveat, Method
from batchplan.units import parse_percent

DEFAULT_MICRO_BATCH = 1
"""The smallest gives most gradients for the same tokens."""
DEFAULT_WINDOW = 8
DEFAULT_PRECISION = "30%"
DEFAULT_MAX_SECONDS = 600.0
_LARGEST_WINDOW = 2**20


def noise(
    model: str,
    data: str | PathLike[str],
    *,
    device: str = AUTO,
    devices: int | str = 1,
    micro_batch: int | str = DEFAULT_MICRO_BATCH,
    window: int | str = DEFAULT_WINDOW,
    seed: int | str = 0,
    weights: bool = False,
    precision: float | str = DEFAULT_PRECISION,
    max_seconds: float | str = DEFAULT_MAX_SECONDS,
    max_tokens: int | str | None = None,
    target_tokens: int | str | None = None,
    tokenizer: str | None = None,
    text_column: str | None = None,
    save: bool = False,
    on_progress: OnProgress | None = None,
    **fields: Unpack[SharedFields],
) -> NoiseAnswer:
    """Return the gradient noise scale of a model on a data set, with its interval.

    Gradients are taken at fixed parameters, in training mode, before any clipping.

    Args:
        model: Hub id, local folder or config.json, or a catalog name.
        data: a file of token ids (``input_ids``, ``labels``), or of text.
        device: ``cpu``, ``cuda``, or ``auto``: a free GPU, or else the CPU.
        devices: ranks, each on a device of this machine.
        micro_batch: sequences of one gradient.
        window: micro-batches of a window, over all ranks.
        seed: decides the rows and their order, random weights and dropout.
        weights: load the published weights in place of random ones.
        precision: half the interval over the estimate at which to stop, such as ``30%``.
        max_seconds: of measuring, loading left out.
        max_tokens: read by the model, padding left out; None is no bound.
        target_tokens: tokens of an optimizer step, to be weighed against the noise scale.
        tokenizer: Hub id or folder for text; None is the model's own.
        text_column: column of text or chat messages.
        save: keep the result in the user's data folder.
        on_progress: told in words what is being done.
        **fields: the shared inputs, named as on the command line, but for ``gpu``.

    Raises:
        SpecError: when an input or a row of the data is wrong.
        SourceError: when the model's config or the tokenizer cannot be had.
        ProbeError: when there is no such device, others use it, or the model does not run.
    """
    path = Path(data).expanduser()
    sizes = _sizes(micro_batch, window)
    budget = Budget(
        precision=_share(precision),
        max_seconds=positive_number("max_seconds", max_seconds, "600"),
        max_tokens=None if max_tokens is None else whole("max_tokens", max_tokens),
    )
    target = None if target_tokens is None else whole("target_tokens", target_tokens)
    request, subject = resolve_subject(
        model,
        fields,
        command="noise",
        device=device,
        devices=devices,
        weights=weights,
        seed=seed,
    )
    subject.request("noise", timeout_seconds=1)  # refuses before the data is read
    rows = draw_rows(
        path,
        seq_len=request.seq_len,
        seed=subject.seed,
        tokenizer=own_tokenizer(request, tokenizer),
        text_column=text_column,
        vocabulary=_vocabulary(request.config),
        on_progress=on_progress,
    )
    per_window = sizes["micro_batch"] * sizes["window"]
    if rows.num_rows < 2 * per_window:
        raise SpecError(
            f"{path} has {rows.num_rows:,} rows, and two windows of {sizes['window']:,} "
            f"micro-batches of {sizes['micro_batch']:,} take {2 * per_window:,}: give a smaller "
            "--window or --micro-batch, or more data."
        )
    measured = measure_noise(subject, rows, **sizes, budget=budget, on_progress=on_progress)
    found = noise_scale(measured.windows)
    record = _record(request, path, subject, measured, found, sizes)
    # Where rows are cut is said with the data.
    asked = [caveat for caveat in request.caveats if caveat.code != "seq-len-assumed"]
    caveats = (*asked, *_caveats(subject, rows, measured, found))
    return NoiseAnswer(
        inputs=subject_inputs(request, subject)
        | sizes
        | {
            "data": str(data),
            "precision": budget.precision,
            "max_seconds": budget.max_seconds,
            "max_tokens": budget.max_tokens,
            "target_tokens": target,
            "tokenizer": tokenizer,
            "text_column": text_column,
        },
        model=request.model,
        subject=subject,
        rows=rows,
        measured=measured,
        found=found,
        target_tokens=target,
        record=record,
        saved_to=save_noise(record) if save else None,
        caveats=caveats,
    )


def _sizes(micro_batch: object, window: object) -> dict[str, int]:
    sizes = {
        "micro_batch": whole("micro_batch", micro_batch),
        "window": whole("window", window, least=2),
    }
    for name, most in (("micro_batch", MAX_MICRO_BATCH), ("window", _LARGEST_WINDOW)):
        if sizes[name] > most:
            raise SpecError(
                f"--{name.replace('_', '-')} {sizes[name]:.4g} is too large: at most {most:,}."
            )
    return sizes


def _share(value: float | str) -> float:
    try:
        share = parse_percent(value) if isinstance(value, str) else float(value)
    except SpecError as error:
        raise SpecError(f"--precision: {error}") from None
    if not 0.01 <= share <= 10:
        raise SpecError(f"--precision {shown(value)} must be from 1% to 1000%.")
    return share


def _vocabulary(config: Any) -> int | None:
    """Return the number of token ids; those of a model with parts are its text part's."""
    for part in (config, config.get("text_config") or {}):
        if isinstance(part.get("vocab_size"), int):
            return int(part["vocab_size"])
    return None


def _record(
    request: Request,
    path: Path,
    subject: Subject,
    measured: MeasuredNoise,
    found: NoiseScale,
    sizes: dict[str, int],
) -> NoiseRecord:
    return NoiseRecord(
        created=datetime.now(UTC).replace(microsecond=0),
        batchplan=__version__,
        device=measured.device_name,
        kind_of_device=subject.device,
        versions=measured.versions,
        model_id=public_name(request.model.id),
        config_sha256=digest(request.config),
        weights=subject.weights,
        data=path.name,
        seed=subject.seed,
        recipe=subject.recipe,
        seq_len=subject.seq_len,
        micro_batch=sizes["micro_batch"],
        window=sizes["window"],
        num_windows=found.num_windows,
        level=LEVEL,
        sequences=_estimate(found.sequences),
        tokens=_estimate(found.sequences.times(measured.row_tokens)),
        row_tokens=measured.row_tokens,
        noise=found.noise,
        signal=found.signal,
        dimensions=found.dimensions,
        loss=found.loss,
        stopped=measured.stopped.value,
    )


def _estimate(ratio: Ratio) -> Estimate:
    return Estimate(
        value=known(ratio), low=ratio.low, high=ratio.high if ratio.is_bounded else None
    )


def _caveats(
    subject: Subject, rows: DrawnRows, measured: MeasuredNoise, found: NoiseScale
) -> Iterator[Caveat]:
    if not subject.weights:
        yield Caveat(
            code="noise-random-weights",
            text="Measured at random weights: it says nothing about a trained model. --weights "
            "loads the published ones.",
        )
    if subject.recipe.method is not Method.FULL:
        yield Caveat(
            code="noise-lora-subspace",
            text="This is the noise scale of the adapters alone, and no bound for full "
            "fine-tuning. They are fresh: B is 0, so only B has a gradient, and A's share comes "
            "with the first steps. Measure again in training, with NoiseScaleCallback.",
        )
    if found.noise <= 0:
        yield Caveat(
            code="noise-no-noise",
            text="All micro-batches have the same gradient, up to rounding: are all rows alike?",
        )
    if found.signal <= 0:
        yield Caveat(
            code="noise-no-signal",
            text=f"The mean of |G|^2 is {found.signal:.3g}: not above 0, so noise hides the "
            "gradient. That is a result, not an error: the noise scale is far above a window.",
        )
    if measured.has_dropout:
        yield Caveat(
            code="noise-dropout",
            text="The model drops units at random, as in training: that adds to its noise.",
        )
    if rows.num_left_out:
        yield Caveat(
            code="noise-rows-without-targets",
            text=f"Rows without a token that counts are left out: {rows.num_left_out:,}.",
        )
    yield Caveat(
        code="noise-not-critical-batch",
        text="A noise scale is not the critical batch (Merrill et al. 2025, arXiv 2505.23971): "
        "take it for an order of magnitude. It grows as training lowers the loss.",
    )
    yield Caveat(
        code="noise-sampling",
        text="Rows are drawn without replacement. Sequences are the unit that is drawn; tokens "
        "are sequences times their mean length.",
    )
