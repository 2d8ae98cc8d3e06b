"""Hand-written training loops: right ones are left alone, and each fault is found where it is.

That the faults are faults is not taken on trust: torch runs the loops, and those with a finding
end elsewhere than training on large batches, those without end there.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable

import pytest
from loops import LOOPS, SETUP

from batchplan.checker.loop import LOOP_RULES, find_loop_mistakes, values_in_loop
from batchplan.configfile import ConfigFile, Finding, Format, Severity

ACCUMULATING = re.compile(r"accum_steps|gradient_accumulation_steps")


def script(text: str) -> ConfigFile:
    return ConfigFile(name="train.py", format=Format.PYTHON, text=text, data={}, entries={})


def findings(text: str) -> tuple[Finding, ...]:
    return find_loop_mistakes(script(SETUP + text))


def loud(text: str) -> list[tuple[str, str]]:
    """Return code and line, as text, of every error and warning."""
    lines = (SETUP + text).splitlines()
    return [
        (found.code, lines[(found.line or 1) - 1].strip())
        for found in findings(text)
        if found.severity is not Severity.NOTE
    ]


def codes(text: str) -> set[str]:
    return {found.code for found in findings(text)}


# Faults: each takes the lines of a right loop and returns them with one fault in, whose line
# ends in #here; None where it does not apply.

Lines = list[str]


def at(lines: Lines, tag: str) -> int | None:
    return next((i for i, line in enumerate(lines) if f"#{tag}" in line), None)


def indent(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]


def like(line: str, written: str) -> str:
    return f"{indent(line)}{written.split('#')[0].strip()}  #here"


def moved(lines: Lines, tag: str, *, behind: str = "", before: str = "") -> Lines | None:
    start, goal = at(lines, tag), at(lines, behind or before)
    if start is None or goal is None:
        return None
    line = like(lines[goal], lines[start])
    found = [*lines]
    found.insert(goal + bool(behind), line)
    found.pop(start + (start > goal))
    return _whole(found)


def _whole(lines: Lines) -> Lines:
    """Put ``pass`` where a moved line has left a block empty."""
    found = []
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        found.append(line)
        is_open = line.split("#")[0].rstrip().endswith(":")
        if is_open and len(indent(after)) <= len(indent(line)):
            found.append(f"{indent(line)}    pass")
    return found


def accumulates(lines: Lines) -> bool:
    return bool(ACCUMULATING.search("\n".join(lines)))


def steps_by_hand(lines: Lines) -> bool:
    return accumulates(lines) and at(lines, "managed") is None


def never_divided(lines: Lines) -> Lines | None:
    divide, inline, backward = at(lines, "divide"), at(lines, "inline"), at(lines, "backward")
    if backward is None or (divide is None and inline is None):
        return None
    found = [*lines]
    found[backward] += " #here"
    if inline is not None:
        name = lines[inline].split("#inline")[1].split()[0]
        found[inline] = found[inline].replace(f" / {name}", "", 1)
    else:
        found.pop(divide)
    return _whole(found)


def divided_twice(lines: Lines) -> Lines | None:
    divide, managed = at(lines, "divide"), at(lines, "managed")
    if divide is not None:
        return [*lines[: divide + 1], like(lines[divide], lines[divide]), *lines[divide + 1 :]]
    if managed is None:
        return None
    line = like(lines[managed], f"loss = loss / {lines[managed].split('#managed')[1].strip()}")
    return [*lines[:managed], line, *lines[managed:]]


def never_cleared(lines: Lines) -> Lines | None:
    zero, step = at(lines, "zero"), at(lines, "step")
    if zero is None or step is None:
        return None
    found = [*lines]
    found[step] += " #here"
    found.pop(zero)
    return _whole(found)


def cleared_each_time(lines: Lines) -> Lines | None:
    forward, zero = at(lines, "forward"), at(lines, "zero")
    if forward is None or zero is None or not steps_by_hand(lines):
        return None
    return [*lines[:forward], like(lines[forward], lines[zero]), *lines[forward:]]


def cleared_by_the_model(lines: Lines) -> Lines | None:
    forward = at(lines, "forward")
    if forward is None or "accelerator.accumulate" not in "\n".join(lines):
        return None
    return [*lines[:forward], like(lines[forward], "model.zero_grad()"), *lines[forward:]]


def scheduled_each_time(lines: Lines) -> Lines | None:
    return moved(lines, "schedule", behind="backward") if accumulates(lines) else None


def clipped_each_time(lines: Lines) -> Lines | None:
    return moved(lines, "clip", behind="backward") if accumulates(lines) else None


def clipped_late(lines: Lines) -> Lines | None:
    # With these, a clip behind the step is a second fault as well.
    has_guard = at(lines, "unscale") is not None or "accelerator.accumulate" in "\n".join(lines)
    return None if has_guard else moved(lines, "clip", behind="step")


def never_unscaled(lines: Lines) -> Lines | None:
    unscale, clip = at(lines, "unscale"), at(lines, "clip")
    if unscale is None or clip is None:
        return None
    found = [*lines]
    found[clip] += " #here"
    found[unscale] = f"{indent(found[unscale])}pass"
    return found


def unscaled_late(lines: Lines) -> Lines | None:
    unscale, clip = at(lines, "unscale"), at(lines, "clip")
    if unscale is None or clip is None:
        return None
    found = [*lines]
    found[clip] += " #here"
    found.insert(clip + 1, indent(found[clip]) + found[unscale].split("#")[0].strip())
    found[unscale] = f"{indent(found[unscale])}pass"
    return found


def graph_kept(lines: Lines) -> Lines | None:
    backward = at(lines, "backward")
    if backward is None:
        return None
    name = lines[backward].split("#backward")[1].split()[0]
    line = like(lines[backward], f"running_loss += {name}")
    return [*lines[: backward + 1], line, *lines[backward + 1 :]]


def losses_kept(lines: Lines) -> Lines | None:
    found = graph_kept(lines)
    return found and [re.sub(r"running_loss \+= (\w+)", r"all_losses.append(\1)", s) for s in found]


def graph_retained(lines: Lines) -> Lines | None:
    backward = at(lines, "backward")
    if backward is None or ".backward()" not in lines[backward] or "else" in "".join(lines):
        return None
    found = [*lines]
    found[backward] = found[backward].replace("backward()", "backward(retain_graph=True)")
    found[backward] += " #here"
    return found


FAULTS: dict[str, tuple[Callable[[Lines], Lines | None], ...]] = {
    "missing-loss-scaling": (never_divided,),
    "loss-scaled-twice": (divided_twice,),
    "zero-grad-missing": (never_cleared,),
    "zero-grad-every-micro-batch": (cleared_each_time, cleared_by_the_model),
    "zero-grad-before-step": (lambda lines: moved(lines, "zero", before="step"),),
    "scheduler-per-micro-batch": (scheduled_each_time,),
    "scheduler-before-step": (lambda lines: moved(lines, "schedule", before="step"),),
    "clip-per-micro-batch": (clipped_each_time,),
    "clip-after-step": (clipped_late,),
    "clip-without-unscale": (never_unscaled,),
    "clip-before-unscale": (unscaled_late,),
    "graph-kept-alive": (graph_kept, losses_kept, graph_retained),
}

FAULTY = [
    pytest.param(code, "\n".join(lines), id=f"{code}, {name}")
    for code, operators in FAULTS.items()
    for operator in operators
    for name, text in LOOPS.items()
    if (lines := operator(text.splitlines())) is not None
]


@pytest.mark.parametrize("text", LOOPS.values(), ids=LOOPS)
def test_a_right_loop_has_no_error_and_no_warning(text):
    assert loud(text) == []


@pytest.mark.parametrize(("code", "text"), FAULTY)
def test_a_fault_is_found_alone_and_on_its_line(code, text):
    compile(SETUP + text, "train.py", "exec")
    ((found, line),) = loud(text)
    assert (found, line.endswith("#here")) == (code, True), line


def test_every_operator_applies_to_some_loop_and_no_loop_is_written_twice():
    for code, operators in FAULTS.items():
        for operator in operators:
            assert any(operator(text.splitlines()) for text in LOOPS.values()), code
    assert len(LOOPS) >= 30
    assert len(set(LOOPS.values())) == len(LOOPS)


def test_every_finding_says_what_to_do_in_the_words_of_the_file():
    for parameters in FAULTY:
        for found in findings(parameters.values[1]):
            assert found.fix, found.code
            assert found.text.endswith("."), found.code
            assert found.file == "train.py"


def test_the_fix_of_an_undivided_loss_is_the_line_to_write():
    written = {
        found.fix
        for parameters in FAULTY
        for found in findings(parameters.values[1])
        if found.code == "missing-loss-scaling"
    }
    assert "Write `(loss / accum_steps).backward()`." in written
    assert "Write `scaler.scale(loss / accum_steps).backward()`." in written
    assert "Write `fabric.backward(loss / accum_steps)`." in written


# Faults that have no right loop one edit away

OTHERS = {
    "step-every-micro-batch": """
for x, y in loader:
    loss = F.mse_loss(model(x), y) / accum_steps
    loss.backward()
    optimizer.step()  #here
    optimizer.zero_grad()
""",
    "step-every-micro-batch ": """
from accelerate import Accelerator
accelerator = Accelerator(gradient_accumulation_steps=4)
for batch in loader:
    accelerator.backward(model(**batch).loss)
    optimizer.step()  #here
    optimizer.zero_grad()
""",
    "accum-never-used": """
accum_steps = 8  #here
for x, y in loader:
    loss = F.mse_loss(model(x), y)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
print("accumulating", accum_steps)
""",
    "accum-never-used ": """
from accelerate import Accelerator
gradient_accumulation_steps = 8  #here
accelerator = Accelerator()
for batch in loader:
    with accelerator.accumulate(model):
        accelerator.backward(model(**batch).loss)
        optimizer.step()
        optimizer.zero_grad()
""",
    "accumulated-twice": """
import deepspeed
config = {"gradient_accumulation_steps": 8}
engine, _, _, _ = deepspeed.initialize(model=model, config=config)
for i, batch in enumerate(loader):
    loss = engine(batch)
    engine.backward(loss)
    if (i + 1) % 4 == 0:
        engine.step()  #here
""",
    "unscale-per-micro-batch": """
scaler = torch.amp.GradScaler()
for i, (x, y) in enumerate(loader):
    loss = F.mse_loss(model(x), y) / 4
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)  #here
    if (i + 1) % 4 == 0:
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
""",
    "fp16-without-scaler": """
for x, y in loader:
    with torch.autocast(device_type="cuda", dtype=torch.float16):  #here
        loss = F.mse_loss(model(x), y)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
""",
    "fp16-without-scaler ": """
from torch.cuda.amp import autocast
for x, y in loader:
    with autocast():  #here
        loss = F.mse_loss(model(x), y)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
""",
    "scheduler-per-micro-batch": """
from accelerate import Accelerator
from torch.optim.lr_scheduler import StepLR
accelerator = Accelerator(gradient_accumulation_steps=4)
model, optimizer = accelerator.prepare(model, optimizer)
schedule = StepLR(optimizer, 10)
for batch in loader:
    with accelerator.accumulate(model):
        accelerator.backward(model(**batch).loss)
        optimizer.step()
        schedule.step()  #here
        optimizer.zero_grad()
""",
}


@pytest.mark.parametrize(("code", "text"), OTHERS.items(), ids=OTHERS)
def test_other_faults_are_found_alone_and_on_their_lines(code, text):
    ((found, line),) = loud(text)
    assert (found, line.endswith("#here")) == (code.strip(), True), line


# What is only worth knowing


def test_a_dropped_last_window_is_noted_unless_it_is_stepped():
    assert "last-window-dropped" in codes(LOOPS["enumerate"])
    assert "last-window-dropped" not in codes(LOOPS["or last"])
    assert "last-window-dropped" not in codes(LOOPS["step after the loop"])
    assert "last-window-dropped" not in codes(LOOPS["while"])  # it counts on over epochs
    assert "short-window-scaled" in codes(LOOPS["or last"])
    assert "short-window-scaled" not in codes(LOOPS["enumerate"])


def test_a_wrapped_model_that_reduces_at_every_micro_batch_is_noted():
    always = LOOPS["ddp no_sync"].replace(
        "nullcontext() if sync else model.no_sync()", "nullcontext()"
    )
    assert "no-sync-missing" in codes(always)
    assert "no-sync-missing" not in codes(LOOPS["ddp no_sync"])
    assert "no-sync-missing" not in codes(LOOPS["enumerate"])
    fabric = LOOPS["fabric"].replace(
        "fabric.no_backward_sync(model, enabled=is_accumulating)", "ctx"
    )
    assert "no-sync-missing" in codes(fabric)
    assert "no-sync-missing" not in codes(LOOPS["fabric"])


def test_means_over_tokens_are_noted_where_lengths_differ():
    tokens = LOOPS["enumerate"].replace(
        "F.mse_loss(model(x), y)", "F.cross_entropy(model(x), y, ignore_index=-100)"
    )
    assert "mean-of-means" in codes(tokens)
    assert "mean-of-means" not in codes(LOOPS["enumerate"])
    assert "mean-of-means" not in codes(LOOPS["sum over tokens"] + "# ignore_index")


def test_a_prepared_scheduler_is_noted_to_step_once_per_process():
    assert "prepared-scheduler" in codes(LOOPS["accelerate"])
    assert "prepared-scheduler" not in codes(LOOPS["accelerate by hand"])


def test_a_loss_of_unknown_reduction_is_a_warning_not_an_error():
    text = LOOPS["enumerate"].replace("    loss = loss / accum_steps  #divide\n", "")
    unknown = text.replace("F.mse_loss(model(x), y)", "my_loss(model(x), y)")
    (sure,) = (f for f in findings(text) if f.code == "missing-loss-scaling")
    (unsure,) = (f for f in findings(unknown) if f.code == "missing-loss-scaling")
    assert (sure.severity, unsure.severity) == (Severity.ERROR, Severity.WARNING)


def test_a_length_in_steps_makes_a_schedule_per_micro_batch_an_error():
    made = "scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=n // accum_steps)"
    text = "\n".join(scheduled_each_time(LOOPS["enumerate"].splitlines()))
    assert {f.severity for f in findings(made + text) if "scheduler" in f.code} == {Severity.ERROR}
    assert {f.severity for f in findings(text) if "scheduler" in f.code} == {Severity.WARNING}


# Values


def test_values_are_read_with_their_lines():
    text = """
K = 2 * 4
train_loader = DataLoader(train_set, batch_size=16, shuffle=True)
test_loader = DataLoader(test_set, batch_size=64)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
for i, (x, y) in enumerate(train_loader):
    loss = F.mse_loss(model(x), y) / K
    loss.backward()
    if (i + 1) % K == 0:
        optimizer.step()
        optimizer.zero_grad()
"""
    assert values_in_loop(script(text)) == {
        "accum_steps": (8, 2),
        "micro_batch": (16, 3),
        "learning_rate": (3e-4, 5),
        "optimizer": ("AdamW", 5),
    }


def test_values_that_only_running_tells_are_left_out():
    text = LOOPS["amp branches"] + "optimizer = torch.optim.SGD(p, lr=args.lr)\n"
    assert set(values_in_loop(script(SETUP + text))) == {"optimizer"}
    assert "accum_steps" not in values_in_loop(script(LOOPS["function"]))  # a default only
    accelerate = LOOPS["accelerate"]
    assert values_in_loop(script(accelerate))["accum_steps"] == (4, 3)
    assert values_in_loop(script(LOOPS["deepspeed"]))["accum_steps"] == (8, 3)


# Hostile files

HOSTILE = {
    "no Python": "for x in: backward .step(",
    "null": "loss.backward()\0",
    "deep": "x = " + "(" * 5000 + ")" * 5000 + "\nloss.backward()",
    "long sum": "loss = " + "a + " * 60_000 + "a\nloss.backward()\n",
    "deep calls": "for x in y:\n    loss" + ".a()" * 5000 + ".backward()\n    opt.step()\n",
    "recursive helper": "def f():\n    f()\n    f()\nfor x in y:\n    f()\n    loss.backward()\n"
    "    opt.step()\n",
    "circular names": "a = b\nb = a\nfor i, x in enumerate(y):\n    loss.backward()\n"
    "    if i % a == 0:\n        opt.step()\n",
    "helpers times calls": "def f():\n"
    + "    loss.backward()\n" * 3000
    + "for x in y:\n"
    + "    f()\n" * 12_000,
    "statements": "for x in y:\n" + "    loss.backward(); opt.step()\n" * 12_000,
    "escape": 'x = "\\d"\nfor y in z:\n    loss.backward()\n',
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_files_are_read_fast_or_not_at_all(text):
    start = time.process_time()
    find_loop_mistakes(script(text))
    assert time.process_time() - start < 5


def test_nothing_is_imported_and_nothing_runs(tmp_path):
    flag = tmp_path / "ran"
    find_loop_mistakes(script(f"open({str(flag)!r}, 'w')\nimport this\n" + LOOPS["enumerate"]))
    assert not flag.exists()
    assert "this" not in sys.modules


def test_rules_have_codes_of_their_own():
    known = [rule.code for rule in LOOP_RULES]
    assert len(set(known)) == len(known)
    assert set(FAULTS) | {code.strip() for code in OTHERS} <= set(known)


# Torch as the judge

RUNNABLE = [
    "enumerate",
    "in place",
    "inline",
    "last remainder",
    "or last",
    "flag",
    "continue",
    "counter",
    "while",
    "inner loop",
    "zero at the start of a window",
    "gradients divided",
    "grad = None",
    "sum over tokens",
    "function",
    "helper",
    "train_step",
    "class",
]
MICRO_BATCHES, ACCUM_STEPS = 8, 4
CHANGES_TRAINING = set(FAULTS) - {"graph-kept-alive", "scheduler-before-step"}
"""Faults that change the weights; the others cost memory, or the first value of a schedule."""


def trained(text: str):
    """Run a script on a small model and return the weights it ends with.

    A norm of 1 clips the first large batch (1.75) and not the second: always clipped, gradients
    would be the same whatever they are multiplied with.
    """
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    data = [(torch.randn(2, 3), torch.randn(2, 1)) for _ in range(MICRO_BATCHES)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    names = {
        "model": model,
        "loader": data,
        "optimizer": optimizer,
        "scheduler": scheduler,
        "torch": torch,
    }
    exec(compile(SETUP + text, "train.py", "exec"), names)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def large_batch(text: str):
    """Train on batches of ``ACCUM_STEPS`` micro-batches at once, with what else a loop does."""
    lines = [
        "import torch.nn.functional as F",
        f"for at in range(0, {MICRO_BATCHES}, {ACCUM_STEPS}):",
        f"    x = torch.cat([x for x, _ in loader[at : at + {ACCUM_STEPS}]])",
        f"    y = torch.cat([y for _, y in loader[at : at + {ACCUM_STEPS}]])",
        "    optimizer.zero_grad()",
        "    F.mse_loss(model(x), y).backward()",
        "    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)" if "clip_" in text else "",
        "    optimizer.step()",
        "    scheduler.step()" if re.search(r"sched\w*\.step\(", text) else "",
    ]
    return trained("\n".join(lines))


@pytest.mark.parametrize("name", RUNNABLE)
def test_torch_agrees_that_a_loop_without_findings_is_the_large_batch(name):
    torch = pytest.importorskip("torch")
    text = LOOPS[name]
    assert loud(text) == []
    torch.testing.assert_close(trained(text), large_batch(text), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        pytest.param(code, "\n".join(lines), id=f"{code}, {name}")
        for code in sorted(CHANGES_TRAINING)
        for operator in FAULTS[code]
        for name in RUNNABLE
        if (lines := operator(LOOPS[name].splitlines())) is not None
    ],
)
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_torch_agrees_that_a_loop_with_a_fault_is_not_the_large_batch(code, text):
    torch = pytest.importorskip("torch")
    assert [found for found, _ in loud(text)] == [code]
    difference = torch.linalg.norm(trained(text) - large_batch(text))
    assert difference > 1e-4
