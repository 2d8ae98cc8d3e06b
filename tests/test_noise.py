"""The noise scale's arithmetic: published examples, laws, and coverage by simulation."""

from __future__ import annotations

import math
import random
from itertools import combinations
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchplan.errors import SpecError
from batchplan.learning.noise import (
    Ratio,
    Watch,
    Window,
    batch_cost,
    fieller,
    noise_scale,
    running_estimates,
    windows_needed,
)

Vector = tuple[float, ...]


def dot(left: Vector, right: Vector) -> float:
    return math.fsum(a * b for a, b in zip(left, right, strict=True))


def window_of(gradients: list[Vector], tokens: list[int]) -> Window:
    """A window from whole gradients, all kept: the dumb way."""
    total = sum(tokens)
    mean = tuple(
        math.fsum(count * part for count, part in zip(tokens, parts, strict=True)) / total
        for parts in zip(*gradients, strict=True)
    )
    return Window(
        num_micro_batches=len(gradients),
        num_sequences=len(gradients),
        num_tokens=total,
        squared_tokens=sum(count**2 for count in tokens),
        sum_of_squares=math.fsum(
            count**2 * dot(g, g) for count, g in zip(tokens, gradients, strict=True)
        ),
        square_of_mean=dot(mean, mean),
    )


# ---- published examples ----

FOUR = [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (2.0, 0.0)]


@pytest.mark.parametrize(("each", "noise", "signal"), [(1, 1.0, 1.0), (8, 8.0, 1.0)])
def test_four_gradients_by_hand(each, noise, signal):
    window = window_of(FOUR, [each] * 4)
    assert window.noise == pytest.approx(noise)
    assert window.signal == pytest.approx(signal)


def test_three_gradients_of_unequal_micro_batches_by_hand():
    """Weights that trust a variance of S / t_j find 11.67 and 0.75; products of two trust none."""
    gradients, tokens = [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0)], [10, 30, 20]
    noise, signal = trusting(gradients, tokens)
    assert (noise, signal) == (pytest.approx(11.666667, abs=1e-6), pytest.approx(0.75))
    window = window_of(gradients, tokens)
    # Summed gradients (10, 0), (0, 30), (20, 20): products 0, 200, 600 over 300, 200, 600 tokens^2.
    assert window.signal == pytest.approx(800 / 1100)
    assert window.noise == pytest.approx(60 * (17 / 18 - 8 / 11))


def trusting(gradients: list[Vector], tokens: list[int]) -> tuple[float, float]:
    """``S`` and ``|G|^2`` if the variance of a micro-batch's mean gradient were S / t_j."""
    total = sum(tokens)
    mean = [fmean(column, weights=tokens) for column in zip(*gradients, strict=True)]
    weighted = fmean([dot(g, g) for g in gradients], weights=tokens)
    square = math.fsum(part * part for part in mean)
    noise = total * (weighted - square) / (len(tokens) - 1)
    return noise, square - noise / total


def test_the_lessons_example_and_why_it_must_not_be_clamped():
    """b = 16, tr Cov of a micro-batch's gradient 0.04, |mean gradient|^2 0.01: 0.64, and 640."""
    b, spread, square = 16, 0.04, 0.01
    n = 2
    # |g_j|^2 on average: the square of the mean, and its spread around it (Bessel).
    window = Window(
        num_micro_batches=n,
        num_sequences=n * b,
        num_tokens=n * b,
        squared_tokens=n * b**2,
        sum_of_squares=n * b**2 * (square + spread * (n - 1) / n),
        square_of_mean=square,
    )
    assert window.noise == pytest.approx(0.64)
    # Of one micro-batch alone the naive difference is below 0; of the pair it is 0.01 - 0.02.
    assert square - spread == pytest.approx(-0.03)
    assert window.signal == pytest.approx(-0.01)
    assert fieller([0.64] * 3, [0.001] * 3).value == pytest.approx(640)


def test_the_sizing_examples():
    """Windows for a standard error of 0.2: three sizes of the same problem, and a hopeless one."""
    sizes = [(500, 32, 400), (500, 32, 26), (5000, 32, 26), (5000, 512, 26)]
    needed = [windows_needed(noise_scale=s, window=b, dimensions=d) for s, b, d in sizes]
    assert needed == [31, 470, 46_951, 184]


# ---- laws ----

numbers = st.floats(-10, 10, allow_nan=False).map(lambda x: round(x, 3))


@st.composite
def micro_batches(draw: st.DrawFn) -> tuple[list[Vector], list[int]]:
    count, size = draw(st.integers(2, 6)), draw(st.integers(1, 4))
    gradients = draw(st.lists(st.tuples(*[numbers] * size), min_size=count, max_size=count))
    return gradients, draw(st.lists(st.integers(1, 50), min_size=count, max_size=count))


@given(micro_batches(), st.integers(1, 50))
def test_the_noise_of_equal_micro_batches_is_bessels_variance_and_never_negative(found, each):
    gradients, _ = found
    window = window_of(gradients, [each] * len(gradients))
    mean = [fmean(column) for column in zip(*gradients, strict=True)]
    spread = math.fsum(math.dist(g, mean) ** 2 for g in gradients) / (len(gradients) - 1)
    assert window.noise == pytest.approx(each * spread, abs=1e-8 * each)
    assert window.noise >= -1e-8 * each


@given(micro_batches())
def test_the_signal_is_the_mean_of_products_of_two_weighted_by_their_tokens(found):
    pairs = list(combinations(zip(*found, strict=True), 2))
    products = [dot(left, right) for (left, _), (right, _) in pairs]
    weights = [left * right for (_, left), (_, right) in pairs]
    assert window_of(*found).signal == pytest.approx(fmean(products, weights=weights), abs=1e-7)


@given(micro_batches())
def test_noise_and_signal_are_the_whole_gradient(found):
    window = window_of(*found)
    both = window.signal + window.noise / window.num_tokens
    assert both == pytest.approx(window.square_of_mean, abs=1e-9)


def test_windows_of_different_make_are_refused():
    two, four = window_of(FOUR[:2], [1, 1]), window_of(FOUR, [1] * 4)
    with pytest.raises(SpecError, match=r"\[2, 4\] micro-batches"):
        noise_scale([two, four])


def test_a_window_with_all_its_targets_in_one_micro_batch_is_refused():
    with pytest.raises(SpecError, match="in one micro-batch"):
        window_of(FOUR[:2], [3, 0])


@pytest.mark.parametrize("signals", [[2.0, 2.0], [2.0, 2.1], [-2.0, -2.1]])
def test_a_noise_that_is_below_0_gives_no_estimate_and_no_bound(signals):
    """Equal gradients, of which rounding alone is left."""
    assert fieller([-1e-7, -1e-7], signals) == Ratio(value=None, low=0, high=math.inf)


def test_one_micro_batch_is_refused():
    with pytest.raises(SpecError, match="two micro-batches"):
        window_of(FOUR[:1], [3])


@given(st.floats(0.1, 100), st.floats(1.0, 20), st.floats(0.01, 1000))
def test_what_a_batch_costs_is_ordered_and_its_losses_multiply_to_their_sum(value, width, batch):
    """(E/E_min - 1)(S/S_min - 1) = 1: McCandlish et al. 2018, equation 2.7."""
    cost = batch_cost(batch, Ratio(value=value, low=value / width, high=value * width))
    for span in (cost.ratio, cost.examples_multiplier, cost.steps_multiplier):
        assert span.low <= span.value <= span.high
    product = (cost.examples_multiplier.value - 1) * (cost.steps_multiplier.value - 1)
    assert product == pytest.approx(1, rel=1e-6)
    assert cost.is_beyond is (batch > value * width)


def test_of_a_bound_alone_only_one_end_of_the_cost_is_known():
    cost = batch_cost(100, Ratio(value=500.0, low=50, high=math.inf))
    assert (cost.ratio.value, cost.ratio.low, cost.ratio.high) == (None, 0.0, 2.0)
    assert (cost.examples_multiplier.low, cost.examples_multiplier.high) == (1.0, 3.0)
    assert (cost.steps_multiplier.low, cost.steps_multiplier.high) == (1.5, None)
    assert not cost.is_beyond


def test_the_running_estimate_ends_with_all_windows():
    rng = random.Random(0)
    windows = [
        window_of([(1 + rng.gauss(0, 1), rng.gauss(0, 1)) for _ in range(4)], [1] * 4)
        for _ in range(21)
    ]
    running = running_estimates(windows)
    assert [count for count, _ in running] == [2, 4, 8, 16, 21]
    assert running[-1][1] == noise_scale(windows).tokens


# ---- coverage, by simulation ----

DIMENSIONS, EACH, COUNT = 400, 4, 8


def simulated(rng, *, scale: float, dimensions: float, num_windows: int) -> list[Window]:
    """Windows of Gaussian gradients with tr Sigma = 1 and |G|^2 = 1 / scale.

    A window's mean and the spread around it are drawn apart, which is the same (Cochran).
    """
    np = pytest.importorskip("numpy")
    spectrum = spectrum_of(dimensions)
    signal = rng.standard_normal(DIMENSIONS)
    signal *= math.sqrt(1 / scale) / np.linalg.norm(signal)
    total = EACH * COUNT
    means = signal + rng.standard_normal((num_windows, DIMENSIONS)) * np.sqrt(spectrum / total)
    squares = (means**2).sum(1)
    around = rng.chisquare(COUNT - 1, (num_windows, DIMENSIONS)) @ (spectrum / EACH)
    return [
        Window(
            num_micro_batches=COUNT,
            num_sequences=total,
            num_tokens=total,
            squared_tokens=COUNT * EACH**2,
            sum_of_squares=float(EACH**2 * (COUNT * square + spread)),
            square_of_mean=float(square),
        )
        for square, spread in zip(squares, around, strict=True)
    ]


def spectrum_of(dimensions: float):
    """A power law over the axes with so many effective dimensions, of trace 1."""
    np = pytest.importorskip("numpy")
    axes = np.arange(1, DIMENSIONS + 1.0)
    low, high = 0.0, 3.0
    for _ in range(50):
        middle = (low + high) / 2
        values = axes**-middle
        low, high = (
            (middle, high) if values.sum() ** 2 / (values**2).sum() > dimensions else (low, middle)
        )
    values = axes**-low
    return values / values.sum()


@pytest.mark.parametrize("shared", [0.0, 0.05, 1.0])
def test_correlated_tokens_of_unequal_sequences_do_not_pass_for_signal(shared):
    """One sequence a micro-batch, of which tokens share so much of their variance.

    B_noise is 10 windows: any noise that is left in ``|G|^2`` is ten times as large there.
    """
    np = pytest.importorskip("numpy")
    rng = np.random.default_rng(11)
    size, count, num_windows = 100, 8, 3000
    lengths = np.maximum(1, rng.gamma(2, 100, (num_windows, count)).round())
    # Of a sequence's summed gradient: shared noise grows as l^2, each token's own as l.
    variances = shared * lengths**2 + (1 - shared) * lengths
    scale = 10 * lengths.sum(1).mean()
    noise = variances.sum() / lengths.sum()  # tokens times the variance of a large batch
    sums = rng.standard_normal((num_windows, count, size)) * np.sqrt(variances / size)[..., None]
    sums[..., 0] += lengths * math.sqrt(noise / scale)
    windows = [
        Window(
            num_micro_batches=count,
            num_sequences=count,
            num_tokens=int(own.sum()),
            squared_tokens=int((own**2).sum()),
            sum_of_squares=float((each**2).sum()),
            square_of_mean=float((each.sum(0) ** 2).sum() / own.sum() ** 2),
        )
        for each, own in zip(sums, lengths, strict=True)
    ]
    found = noise_scale(windows)
    assert found.tokens.holds(scale)
    assert found.signal == pytest.approx(noise / scale, rel=0.15)
    assert found.noise == pytest.approx(noise, rel=0.03)
    # Lengths spread ``S`` too, which is no lack of directions.
    assert size / 3 < found.dimensions < size * 1.2


@pytest.mark.parametrize(
    ("scale", "dimensions", "num_windows", "repetitions"),
    [
        (500, 400, 50, 400),
        (500, 26, 50, 400),
        (500, 26, 400, 200),
        (50, 26, 50, 400),
        (5000, 26, 100, 300),  # so weak a signal that most intervals have no upper bound
        (500, 26, 20, 400),
    ],
)
def test_the_interval_holds_the_true_value_as_often_as_it_says(
    scale, dimensions, num_windows, repetitions
):
    np = pytest.importorskip("numpy")
    rng = np.random.default_rng(scale + num_windows)
    held = [
        noise_scale(
            simulated(rng, scale=scale, dimensions=dimensions, num_windows=num_windows)
        ).tokens.holds(scale)
        for _ in range(repetitions)
    ]
    assert 0.92 <= fmean(held) <= 0.98


def test_stopping_as_soon_as_it_is_tight_costs_little_coverage():
    np = pytest.importorskip("numpy")
    rng = np.random.default_rng(7)
    held = []
    for _ in range(300):
        windows = simulated(rng, scale=50, dimensions=26, num_windows=100)
        watch = Watch(0.3)
        stop = next((n for n in range(1, 101) if watch.is_enough(windows[:n])), 100)
        held.append(noise_scale(windows[:stop]).tokens.holds(50))
    assert 0.92 <= fmean(held) <= 0.98


def test_it_looks_from_twenty_windows_on_and_after_a_quarter_more(monkeypatch):
    from batchplan.learning.noise import stopping

    looks: list[int] = []
    never = noise_scale([window_of(FOUR, [1] * 4), window_of(FOUR[::-1], [1] * 4)])

    def look(windows):
        looks.append(len(windows))
        return never

    monkeypatch.setattr(stopping, "noise_scale", look)
    watch = Watch(-1.0)
    assert not any(watch.is_enough(range(count)) for count in range(100))
    assert looks == [20, 25, 31, 38, 47, 58, 72, 90]


def test_following_the_plan_soon_gives_an_upper_bound():
    """A first plan rests on a lower bound, so it may fall short; the next one knows more."""
    np = pytest.importorskip("numpy")
    rng = np.random.default_rng(3)
    found, rounds = noise_scale(simulated(rng, scale=5000, dimensions=26, num_windows=100)), 0
    assert not found.tokens.is_bounded
    while not found.tokens.is_bounded:
        upcoming, rounds = found.next(), rounds + 1
        assert upcoming.window_tokens > found.num_tokens / found.num_windows or rounds > 1
        factor = upcoming.window_tokens // (EACH * COUNT)
        # Windows larger by a factor: as much less noise, so another scale in other units.
        windows = simulated(
            rng, scale=5000 / factor, dimensions=26, num_windows=upcoming.num_windows
        )
        found = noise_scale([larger(window, factor) for window in windows])
    assert rounds <= 4
    assert found.tokens.holds(5000)


def test_a_signal_clearly_below_0_is_chance_and_planned_on():
    windows = [
        window_of([(1.0 + shift, 0.0), (2 * shift - 1.0, 0.1)], [5, 5])
        for shift in (0.0, 0.01, 0.02, 0.03)
    ]
    found = noise_scale(windows)
    assert found.signal < 0
    assert not found.tokens.is_informed
    assert found.next().window_tokens == 20


def larger(window: Window, factor: int) -> Window:
    return Window(
        num_micro_batches=COUNT,
        num_sequences=window.num_sequences * factor,
        num_tokens=window.num_tokens * factor,
        squared_tokens=window.squared_tokens * factor**2,
        sum_of_squares=window.sum_of_squares * factor**2,
        square_of_mean=window.square_of_mean,
    )
