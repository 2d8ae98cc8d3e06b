"""The whole run: how many tokens, by when, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from batchplan.api.checks import option, shown
from batchplan.api.epochs import epoch_steps
from batchplan.api.learning import positive_number
from batchplan.errors import SpecError
from batchplan.planner import Aim
from batchplan.planner.plan import Plan
from batchplan.sources import find_gpu
from batchplan.spec import Gpu, Objective

SECONDS_PER_HOUR = 3600
_LARGEST_FILE = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What is to be trained, and at what price."""

    objective: Objective
    epoch_tokens: int | None
    """With every row of a data set as long as it is priced."""
    epochs: float
    deadline_hours: float | None
    time_share: Callable[[int], float]
    """How long an average step takes against one of the longest sequences, by micro-batch."""
    fill: float
    """Share of the tokens above that the data fills; the rest is padding."""
    prices: dict[str, float]
    """Of one device and hour, by the GPU's name; the currency is the user's."""

    @property
    def tokens(self) -> int | None:
        """Tokens of the whole run, counted like ``epoch_tokens``."""
        return None if self.epoch_tokens is None else round(self.epoch_tokens * self.epochs)

    @property
    def aim(self) -> Aim:
        """What the search optimises."""
        hours = self.deadline_hours
        return Aim(
            objective=self.objective,
            train_tokens=self.tokens,
            deadline_seconds=None if hours is None else hours * SECONDS_PER_HOUR,
            time_share=self.time_share,
        )

    def document(self, plan: Plan, gpu: Gpu) -> dict[str, Any] | None:
        """Return time, device hours and cost of the run under ``plan``; None without a data set."""
        if self.epoch_tokens is None or plan.step_time is None:
            return None
        # Trainers end every pass with a short step.
        steps = math.ceil(self.epochs * epoch_steps(plan, self.epoch_tokens))
        seconds = steps * plan.step_time.mid * self.time_share(plan.batch.micro_batch)
        hours = seconds / SECONDS_PER_HOUR * plan.batch.num_ranks
        price = self.prices.get(gpu.name)
        return {
            "tokens": round(self.epoch_tokens * self.epochs * self.fill),
            "steps": steps,
            "seconds": seconds,
            "device_hours": hours,
            "price_per_device_hour": price,
            "cost": None if price is None else hours * price,
        }


def training(
    *,
    gpus: tuple[Gpu, ...],
    optimize: str | None,
    epoch_tokens: int | None,
    time_share: Callable[[int], float],
    fill: float = 1.0,
    epochs: float | str | None,
    deadline: float | str | None,
    gpu_price: float | str | PathLike[str] | None,
    default: Objective = Objective.THROUGHPUT,
) -> Training:
    """Return what the inputs say about the run.

    Raises:
        SpecError: when one is wrong, or needs another that is missing.
    """
    if optimize is None:
        objective = default if deadline is None else Objective.TIME
    else:
        objective = _objective(optimize)
    for name, value in (("epochs", epochs), ("deadline", deadline)):
        if value is not None and epoch_tokens is None:
            raise SpecError(f"{option(name)} needs the size of the data: add --dataset-tokens.")
    prices = {} if gpu_price is None else _prices(gpu_price, gpus)
    if prices and epoch_tokens is None:
        raise SpecError("--gpu-price needs the size of the data: add --dataset-tokens.")
    return Training(
        objective=objective,
        epoch_tokens=epoch_tokens,
        time_share=time_share,
        fill=fill,
        epochs=1.0 if epochs is None else positive_number("epochs", epochs, "3"),
        deadline_hours=None if deadline is None else positive_number("deadline", deadline, "24"),
        prices=prices,
    )


def _objective(text: str) -> Objective:
    try:
        return Objective(text)
    except ValueError:
        raise SpecError(
            f"--optimize {shown(text)}: must be one of {', '.join(Objective)}."
        ) from None


def _prices(given: float | str | PathLike[str], gpus: tuple[Gpu, ...]) -> dict[str, float]:
    """Return the price of each GPU: one number for all, or a file of ``name,price`` lines."""
    try:
        float(str(given))
    except ValueError:
        prices = _read_prices(str(given))
    else:
        price = _price(str(given))
        return {gpu.name: price for gpu in gpus}
    if not any(gpu.name in prices for gpu in gpus):
        asked = gpus[0].name if len(gpus) == 1 else "any device that can be compared"
        raise SpecError(f"--gpu-price {given} has no line for {asked}.")
    return prices


def _price(text: str) -> float:
    return positive_number("gpu_price", text, "2.5")


def _read_prices(given: str) -> dict[str, float]:
    import csv

    path = Path(given)
    try:
        text = path.read_text(encoding="utf-8")[:_LARGEST_FILE]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SpecError(
            f"--gpu-price {shown(given)} is neither a price for one device and hour nor a "
            f"file of name,price lines: {reason}."
        ) from None
    prices = {}
    for number, row in enumerate(csv.reader(text.splitlines()), start=1):
        if not row or row[0].lstrip().startswith("#") or row == ["gpu", "price"]:
            continue
        if len(row) != 2:
            raise SpecError(f"{path}, line {number}: {shown(','.join(row))} is not name,price.")
        prices[find_gpu(row[0].strip()).name] = _price(row[1].strip())
    if not prices:
        raise SpecError(f"--gpu-price {path} holds no name,price line.")
    return prices
