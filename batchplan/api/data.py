"""The user's data set: read once, and what it changes in a question and adds to its answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from batchplan.api.checks import option, whole
from batchplan.api.fields import AskedFields, DataFields, SharedFields
from batchplan.api.measuring import lengths_document
from batchplan.api.profiles import OnProgress
from batchplan.api.request import Request, resolve
from batchplan.errors import SpecError
from batchplan.sequences import (
    LayoutName,
    candidate_seq_lens,
    covering_power,
    packed_bins,
    padded_in_random_order,
    rounded,
    slots,
    survey,
)
from batchplan.sources.lengths_file import Measured, read_lengths
from batchplan.spec import Batch, Caveat

_FILES = ("dataset", "lengths")


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """A data set as a plan meets it: cut, and padded or packed into rows."""

    measured: Measured
    seq_len: int
    """Where its sequences are cut."""
    packing: bool
    rows: int
    """Of one epoch: sequences, or bins when packed."""
    tokens: int
    """Of one epoch, truncated and without padding."""
    inputs: dict[str, Any]
    caveats: tuple[Caveat, ...]

    @property
    def row_tokens(self) -> int:
        """Tokens of the fullest row there can be, as the collator pads it: what is priced."""
        if self.packing:
            return self.seq_len
        return rounded(min(self.measured.distribution.longest, self.seq_len))

    @property
    def mean_row_tokens(self) -> float:
        """Tokens of the data in one row, on average."""
        return self.tokens / self.rows


def resolve_with_data(
    model: str | None, fields: AskedFields, on_progress: OnProgress | None
) -> tuple[Request, Data | None]:
    """Resolve the shared inputs and read the data set, if there is one.

    The request's ``seq_len`` becomes the length of the longest row there can be.

    Raises:
        SpecError: when an input or a row of the data is wrong, or two contradict each other.
        SourceError: when the model's config or the tokenizer cannot be had.
    """
    names = get_type_hints(DataFields)
    given = {name: fields.get(name) for name in names if fields.get(name)}
    shared: Any = {name: value for name, value in fields.items() if name not in names}
    request = resolve(model, shared)
    if not given:
        return request, None
    data = _data(request, shared, given, on_progress)
    kept = tuple(caveat for caveat in request.caveats if caveat.code != "seq-len-assumed")
    return replace(request, seq_len=data.row_tokens, caveats=kept), data


def data_inputs(data: Data | None) -> dict[str, Any]:
    """Return what the data set adds to the inputs."""
    return {} if data is None else data.inputs


def data_caveats(data: Data | None) -> tuple[Caveat, ...]:
    """Return what the user should know of the data set and of how it is priced."""
    return () if data is None else data.caveats


def epoch_slots(data: Data | None, epoch_tokens: object) -> int | None:
    """Return the tokens of an epoch with every row as long as it is priced.

    Divided by a step's tokens, which count rows alike, they are the steps of an epoch.

    Raises:
        SpecError: when ``epoch_tokens`` is given beside a data set, or is no whole number.
    """
    if epoch_tokens is None:
        return None if data is None else data.rows * data.row_tokens
    if data is not None:
        raise SpecError("Leave out --epoch-tokens: the data set says how many it has.")
    return whole("epoch_tokens", epoch_tokens)


def fill(data: Data | None) -> float:
    """Return the share of ``epoch_slots`` that holds tokens of the data; 1 without a data set."""
    return 1.0 if data is None else data.tokens / (data.rows * data.row_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What one optimizer step should hold, in the words the search takes."""

    tokens: object
    sequences: object
    inputs: dict[str, Any]
    """The target as it was asked, where it was changed."""
    caveats: tuple[Caveat, ...]


def time_share(data: Data | None) -> Callable[[int], float]:
    """Return how long an average step takes against the longest one, by micro-batch.

    At constant speed it is the expected share of the longest rows' slots that micro-batches in
    random order fill. Leaves out: attention, which gains more, and launches, which gain nothing.
    """

    @cache
    def share(micro_batch: int) -> float:
        if data is None or data.packing:
            return 1.0
        spread = data.measured.distribution
        padded = padded_in_random_order(spread, micro_batch)
        return slots(spread, padded, data.seq_len) / (data.rows * data.row_tokens)

    return share


def target_of(data: Data | None, tokens: object, sequences: object) -> Target:
    """Return the target; with a data set, tokens are those of the data and so a number of rows.

    Raises:
        SpecError: when the target is no number, or less than one row.
    """
    if data is None or tokens is None or sequences is not None:
        return Target(tokens=tokens, sequences=sequences, inputs={}, caveats=())
    target, mean = whole("target_tokens", tokens), data.mean_row_tokens
    if target < mean:
        raise SpecError(
            f"The target of {target:,} tokens is less than one row of the data, {mean:,.0f} "
            "tokens on average."
        )
    rows = round(target / mean)
    text = (
        f"The target counts tokens of the data, {mean:,.1f} a row on average: {target:,} are "
        f"{rows:,} rows a step. Tokens in the table of plans count padding too."
    )
    return Target(
        tokens=None,
        sequences=rows,
        inputs={"target_tokens": target, "target_sequences": None},
        caveats=(Caveat(code="target-without-padding", text=text),),
    )


def data_document(data: Data | None, batch: Batch | None) -> dict[str, Any] | None:
    """Return the lengths, and what ``batch`` makes of them."""
    if data is None:
        return None
    spread = data.measured.distribution
    micro_batch = 1 if batch is None else batch.micro_batch
    seq_lens = candidate_seq_lens(spread, [data.seq_len])
    table = survey(spread, seq_lens=seq_lens, micro_batch=micro_batch)
    row = next(row for row in table if row.seq_len == data.seq_len)
    layout = row.layout(LayoutName.PACKED if data.packing else LayoutName.LONGEST)
    document = lengths_document(data.measured, table, micro_batch=micro_batch)
    per_step = 1 if batch is None else batch.global_batch_size
    document["plan"] = (
        None
        if batch is None
        else {
            "packing": data.packing,
            "seq_len": data.seq_len,
            "row_tokens": data.row_tokens,
            "rows": data.rows,
            "rows_per_step": per_step,
            "tokens_per_step": data.mean_row_tokens * per_step,
            "slots_per_step": layout.slots / layout.rows * per_step,
            "waste": layout.waste,
            "steps_per_epoch": -(-data.rows // per_step),
        }
    )
    return document


def _data(
    request: Request,
    shared: SharedFields,
    given: Mapping[str, Any],
    on_progress: OnProgress | None,
) -> Data:
    files = [name for name in _FILES if name in given]
    if not files:
        raise SpecError(f"{option(next(iter(given)))} needs --dataset FILE or --lengths FILE.")
    if len(files) > 1:
        raise SpecError("Give --dataset or --lengths, not both.")
    measured = _MEASURES[files[0]](request, given, on_progress)
    is_chosen = shared.get("seq_len") is None
    seq_len = _chosen_seq_len(request, measured) if is_chosen else request.seq_len
    cut = measured.distribution.truncated(seq_len)
    packing = bool(given.get("packing"))
    rows = packed_bins(cut, seq_len) if packing else cut.num_sequences
    inputs: dict[str, Any] = {name: given.get(name) for name in get_type_hints(DataFields)}
    inputs |= {name: str(given[name]) for name in files}
    data = Data(
        measured=measured,
        seq_len=seq_len,
        packing=packing,
        rows=rows,
        tokens=cut.total_tokens,
        inputs=inputs | {"packing": packing, "seq_len": seq_len},
        caveats=(),
    )
    said = (*([_chosen(request, data)] if is_chosen else []), _priced(data))
    return replace(data, caveats=(*measured.caveats, *said))


def _from_lengths(_: Request, given: Mapping[str, Any], __: OnProgress | None) -> Measured:
    wrong = next((name for name in ("tokenizer", "text_column") if name in given), None)
    if wrong is not None:
        raise SpecError(f"{option(wrong)} goes with --dataset; --lengths are counted already.")
    return read_lengths(Path(given["lengths"]).expanduser(), column=given.get("length_column"))


def _from_dataset(
    request: Request, given: Mapping[str, Any], on_progress: OnProgress | None
) -> Measured:
    from batchplan.sources.dataset_file import measure

    return measure(
        Path(given["dataset"]).expanduser(),
        tokenizer=own_tokenizer(request, given.get("tokenizer")),
        length_column=given.get("length_column"),
        text_column=given.get("text_column"),
        retokenize="tokenizer" in given,
        on_progress=on_progress,
    )


_MEASURES = {"dataset": _from_dataset, "lengths": _from_lengths}


def own_tokenizer(request: Request, given: str | None) -> Any:
    """Return the tokenizer that was named, or the model's own; None without a model."""
    from batchplan.sources.tokenizer import TokenizerName

    if given is None and request.resolved is None:
        return None
    is_local = request.model.source.startswith("local")
    own = request.model_text if is_local else request.model.id
    return TokenizerName(
        text=given or own or "",
        revision=None if given else request.revision,
        offline=request.offline,
        trust_remote_code=request.trust_remote_code,
    )


def _chosen_seq_len(request: Request, measured: Measured) -> int:
    longest = covering_power(measured.distribution.longest)
    return min(longest, request.model.max_seq_len or longest)


def _chosen(request: Request, data: Data) -> Caveat:
    spread = data.measured.distribution
    number = spread.longer_than(data.seq_len)
    if number:
        lost = 1 - data.tokens / spread.total_tokens
        why = (
            f"all that {request.model.id} reaches; {number:,} of {spread.num_sequences:,} are "
            f"longer and lose {lost:.1%} of all tokens"
        )
    elif data.seq_len < covering_power(spread.longest):
        why = f"all that {request.model.id} reaches; none is longer"
    else:
        why = "the smallest power of two that cuts none"
    text = f"No --seq-len given: sequences are cut at {data.seq_len:,} tokens, {why}."
    return Caveat(code="seq-len-from-data", text=text)


def _priced(data: Data) -> Caveat:
    if data.packing:
        text = (
            f"Every row is packed and priced at {data.row_tokens:,} tokens. Pack the data before "
            "training: no config written here does it."
        )
        return Caveat(code="priced-packed", text=text)
    longest = min(data.measured.distribution.longest, data.seq_len)
    padded = "" if longest == data.row_tokens else f" ({data.row_tokens:,} as collators pad it)"
    text = (
        "The worst micro-batch is priced, in memory and in time: its longest sequence has "
        f"{longest:,} tokens{padded}, the mean one {data.mean_row_tokens:,.0f}. "
        "Other steps take less time than is shown; an epoch counts what they are expected to hold."
    )
    return Caveat(code="priced-at-longest", text=text)
