"""Config files: values as the trainers' own loaders see them, places, and edits in the text.

Oracles: ``yaml.safe_load``, ``json.loads`` and ``ast.literal_eval`` for what a text says, and a
dumber edit on plain dictionaries for what it should say afterwards.
"""

import ast
import copy
import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from batchplan.configfile import UNKNOWN, Change, Edit, Format, apply, parse
from batchplan.errors import SpecError

words = st.sampled_from(["a", "lr", "on", "1", "x y", "fsdp_config", "é", "null", "k: v", "#", "~"])
texts = st.one_of(
    words, st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=6)
)
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), texts
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)
mappings = st.dictionaries(words, values, min_size=1, max_size=5)


def at(file, *path):
    """Return the text that an entry says its value is written as."""
    written = file.entries[path].written
    return file.text[written.start : written.end]


def walk(value, path=()):
    """Yield every path and value below a mapping or list."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for name, item in items:
        yield (*path, name), item
        if isinstance(item, dict | list):
            yield from walk(item, (*path, name))


# Reading.


@given(mappings, st.sampled_from([None, True, False]), st.integers(2, 5), st.data())
def test_yaml_says_what_safe_load_says(data, flow, indent, draw):
    lines = yaml.safe_dump(
        data, default_flow_style=flow, indent=indent, allow_unicode=True, sort_keys=False
    ).splitlines()
    for number in draw.draw(st.lists(st.integers(0, len(lines)), max_size=3)):
        lines.insert(number, "# comment: [")
    text = draw.draw(st.sampled_from(["\n", "\r\n"])).join(lines) + "\n"
    try:
        wanted = yaml.safe_load(text)
    except yaml.YAMLError:  # a comment within a scalar of several lines
        return
    file = parse("a.yaml", text.encode())
    assert file.data == wanted
    assert {path: entry.value for path, entry in file.entries.items()} == dict(walk(wanted))
    for path, value in walk(wanted):
        written = at(file, *path)
        if not isinstance(value, dict | list) and "\n" not in written:
            assert yaml.safe_load(written) == value


@given(mappings, st.sampled_from([None, 0, 2]))
def test_json_says_what_loads_says_and_every_place_is_right(data, indent):
    file = parse("a.json", json.dumps(data, indent=indent).encode())
    assert file.data == data
    assert {path: json.loads(at(file, *path)) for path in file.entries} == dict(walk(data))
    for path, entry in file.entries.items():
        if entry.key is not None:
            assert json.loads(file.text[entry.key.start : entry.key.end]) == path[-1]
            assert (
                file.text.count("\n", 0, entry.key.start) + 1 == entry.key.line == file.line(*path)
            )
            start = file.text.rfind("\n", 0, entry.key.start) + 1
            assert entry.key.column == entry.key.start - start + 1


@given(st.dictionaries(st.sampled_from(["a", "lr", "é", "args"]), values, min_size=1))
def test_python_says_what_literal_eval_says(data):
    arguments = ",\n  ".join(f"{name}={value!r}" for name, value in data.items())
    file = parse("a.py", f"x = 'é'; train.SFTConfig({arguments})\n".encode())
    assert file.data == {"train.SFTConfig": data}
    for path, value in walk(data):
        assert ast.literal_eval(at(file, "train.SFTConfig", *path)) == value


def test_yaml_reads_numbers_as_the_trainers_loaders_do():
    text = "a: 2e-5\nb: 2.0e-5\nc: 1_000\nd: 1:30\ne: yes\nf: 0o17\ng: 017\nh: 2026-11-22\ni: ~\n"
    file = parse("a.yaml", text.encode())
    assert file.data == yaml.safe_load(text)
    assert file.get("a") == "2e-5"
    assert file.get("b") == 2e-5


def test_yaml_aliases_and_merge_keys_count_as_what_they_stand_for():
    text = (
        "base: &base {a: 1, b: [1, 2]}\n"
        "more: &more\n  <<: *base\n  c: 3\n"
        "own:\n  b: 0\n  <<: [*more, {a: 9, d: 4}]\n"
        "list: [*base, *base]\n=: 5\n? x\n"
    )
    file = parse("a.yaml", text.encode())
    assert file.data == yaml.safe_load(text)
    assert file.data["own"] == {"a": 1, "b": 0, "c": 3, "d": 4}
    assert file.line("own", "a") == 1
    assert at(file, "list", 0) == "*base"


def test_of_a_repeated_key_the_last_counts_and_the_others_are_told():
    file = parse("a.yaml", b"lr: 1\nx:\n  y: 2\nlr: 3\nx: 4\n")
    assert file.data == {"lr": 3, "x": 4}
    assert [(entry.dotted, entry.value, entry.key.line) for entry in file.repeated] == [
        ("lr", 1, 1),
        ("x", {"y": 2}, 2),
    ]
    assert ("x", "y") not in file
    assert "lr" in file
    assert file.line("lr") == 4
    assert parse("a.json", b'{"a": 1, "a": [2]}').repeated[0].value == 1


@pytest.mark.parametrize(
    ("name", "content", "format_"),
    [
        ("a.yml", b"a: 1", Format.YAML),
        ("ds.JSON", b"{}", Format.JSON),
        ("a.py", b"f(a=1)", Format.PYTHON),
        ("run.sh", b"python a.py --x 1", Format.SHELL),
        ("config", b" {\"a\": 1}", Format.JSON),
        ("config", b"a: 1", Format.YAML),
        ("a.yaml", b"\xef\xbb\xbfa: 1", Format.YAML),
    ],
)  # fmt: skip
def test_the_format_is_told_by_the_suffix_or_the_content(name, content, format_):
    assert parse(name, content).format is format_


PYTHON = """\
import os, torch
from trl import SFTConfig as Config
os.environ["A"] = "1"
os.environ.setdefault("B", str(2))
LR = 2e-5
common = dict(bf16=True, lr=LR)
twice = 1
twice = 2
changed = {"x": 1}
changed["x"] = 2
def main(unseen, size=4):
    here = 8
    model = AutoModel.from_pretrained("m", dtype=torch.bfloat16, device=torch.device("cpu"))
    trainer = Trainer(
        model=model,
        args=Config(lr=LR, steps=here * 2 - 1, **common, z={"a": -1, "b": [here, (2, unseen)]}),
        one=twice, two=changed, three=unseen, four=size, five=f"{LR}", **unseen,
    )
    trainer.train()
Config(lr=here)
"""


def test_python_names_are_followed_where_reading_is_enough():
    file = parse("a.py", PYTHON.encode())
    config = {
        "lr": 2e-5,
        "steps": 15,
        "bf16": True,
        "z": {"a": -1, "b": [8, (2, UNKNOWN)]},
    }
    unknown = dict.fromkeys(["one", "two", "three", "four", "five", "**"], UNKNOWN)
    assert file.data == {
        "os.environ": {"A": "1", "B": UNKNOWN},
        "str": {0: 2},
        "dict": {"bf16": True, "lr": 2e-5},
        "AutoModel.from_pretrained": {0: "m", "dtype": "torch.bfloat16", "device": UNKNOWN},
        "torch.device": {0: "cpu"},
        "Trainer": {"model": UNKNOWN, "args": config, **unknown},
        "trainer.train": {},
        "Config": config,
        "Config#2": {"lr": UNKNOWN},
    }
    assert list(file.data)[:3] == ["os.environ", "str", "dict"]
    assert file.line("Trainer", "args", "steps") == 16
    assert file.line("Trainer", "args", "bf16") == 6
    assert file.get("Trainer", "one", default="?") == "?"
    assert copy.deepcopy(file.data["Trainer"]["one"]) is UNKNOWN


@pytest.mark.parametrize(
    "before",
    [
        "for x in y: pass", "with y as x: pass", "import x", "from y import x", "def x(): pass",
        "class x: pass", "x += 1", "(x := 2)", "del x", "x, y = 2, 3", "[x for x in y]",
        "def f():\n  global x\n  x = 2",
        "try: pass\nexcept E as x: pass", "match y:\n  case [x]: pass",
    ],
)  # fmt: skip
def test_python_a_name_bound_twice_is_unknown(before):
    assert parse("a.py", b"x = 1\nf(a=x)\n").get("f", "a") == 1
    assert parse("a.py", f"x = 1\n{before}\nf(a=x)\n".encode()).get("f", "a") is None


SHELL = """\
#!/bin/bash
#SBATCH --nodes 2
set -euo pipefail
export NPROC_PER_NODE=8 NAME="8"  # comment
PORT=$(shuf -i 1-9)
cat > x.yaml <<'EOF'
torchrun --not this.py
EOF
if true; then
  OMP=4 srun --ntasks 2 torchrun --standalone --nnodes=2 \\
    train.py --lr 2.0e-5 --bf16 \\
    --name='a "b"' --target q k --model "$MODEL" --neg -1 --kw '{"a": 1}' --off false 2>&1 | tee l
fi
rm --force x.yaml
"""


def test_a_launch_script_gives_environment_program_and_flags():
    file = parse("a.sh", SHELL.encode())
    assert file.data == {
        "env": {"NPROC_PER_NODE": 8, "NAME": "8", "PORT": UNKNOWN, "OMP": 4},
        "program": ["torchrun", "train.py"],
        "flags": {
            "--standalone": True,
            "--nnodes": 2,
            "--lr": 2e-5,
            "--bf16": True,
            "--name": 'a "b"',
            "--target": ["q", "k"],
            "--model": UNKNOWN,
            "--neg": -1,
            "--kw": '{"a": 1}',
            "--off": False,
        },
    }
    assert file.line("flags", "--bf16") == 11
    assert at(file, "flags", "--name") == "'a \"b\"'"


@pytest.mark.parametrize(
    ("command", "program", "flags"),
    [
        ("python -m torch.distributed.run --nnodes 2 t.py --x a b",
         ["python", "-m", "torch.distributed.run", "t.py"], {"--nnodes": 2, "--x": ["a", "b"]}),
        ("accelerate launch --use_fsdp -m axolotl.cli.train c.yaml --x 1",
         ["accelerate", "launch", "-m", "axolotl.cli.train", "c.yaml"],
         {"--use_fsdp": True, "--x": 1}),
        ("tune run --nproc_per_node 2 full_finetune_distributed --config x.yaml batch_size=4",
         ["tune", "run", "full_finetune_distributed", "batch_size=4"],
         {"--nproc_per_node": 2, "--config": "x.yaml"}),
        ("swift sft --model m --target_modules q k", ["swift", "sft"],
         {"--model": "m", "--target_modules": ["q", "k"]}),
        ("FORCE_TORCHRUN=1 llamafactory-cli train c.yaml",
         ["llamafactory-cli", "train", "c.yaml"], {}),
        ("axolotl train c.yaml --micro-batch-size=2", ["axolotl", "train", "c.yaml"],
         {"--micro-batch-size": 2}),
        ("deepspeed --num_gpus 8 t.py --deepspeed ds.json && echo --done", ["deepspeed", "t.py"],
         {"--num_gpus": 8, "--deepspeed": "ds.json"}),
    ],
)  # fmt: skip
def test_launchers_and_their_scripts_are_told_apart(command, program, flags):
    file = parse("a.sh", command.encode())
    assert file.data["program"] == program
    assert file.data["flags"] == flags


# Editing: documents with a comment above and behind every key.


def yaml_lines(data, indent=""):
    """Return a mapping as block style with comments that name the key."""
    for name, value in data.items():
        key = yaml.safe_dump(name, allow_unicode=True).removesuffix("...\n").strip()
        yield f"{indent}# above {name}"
        if isinstance(value, dict) and value:
            yield f"{indent}{key}:  # behind {name}"
            yield from yaml_lines(value, indent + "  ")
        else:
            dumped = yaml.safe_dump([value], default_flow_style=True, width=2**20)
            yield f"{indent}{key}: {dumped.strip()[1:-1]}  # behind {name}"


def python_lines(data, indent="    ", is_call=True):
    """Return keyword arguments, and dictionaries within, with comments that name the key."""
    for name, value in data.items():
        key = f"{name}=" if is_call else f"{name!r}: "
        yield f"{indent}# above {name}"
        if isinstance(value, dict) and value:
            yield f"{indent}{key}{{  # within {name}"
            yield from python_lines(value, indent + "    ", is_call=False)
            yield f"{indent}}},  # behind {name}"
        else:
            yield f"{indent}{key}{value!r},  # behind {name}"


names = st.integers(0, 99).map("k{}".format)
simple = st.one_of(scalars, st.lists(scalars, max_size=3), st.just({}))
trees = st.dictionaries(
    names, simple | st.dictionaries(names, simple | st.dictionaries(names, simple)), min_size=1
).filter(lambda data: len(set(keys := [path[-1] for path, _ in walk_keys(data)])) == len(keys))


def walk_keys(data):
    return [(path, value) for path, value in walk(data) if isinstance(path[-1], str)]


@st.composite
def trees_and_edits(draw):
    """Draw a document and edits that make sense one after another, with the expected outcome."""
    data = draw(trees)
    outcome, edits, gone, born = copy.deepcopy(data), [], set(), {}
    for number in range(draw(st.integers(1, 3))):
        paths = walk_keys(outcome)
        path, value = draw(st.sampled_from(paths)) if paths else (("new",), None)
        change = draw(st.sampled_from(list(Change))) if paths else Change.SET
        *parents, last = path
        holder = outcome
        for name in parents:
            holder = holder[name]
        first = born.get(last, last)
        below = {path[-1] for path, _ in walk_keys(value)} if isinstance(value, dict) else set()
        below = {born.get(name, name) for name in below}
        new = f"new{number}"
        if change is Change.SET and draw(st.booleans()):
            written = draw(simple | st.dictionaries(st.just("inner"), simple))
            edits.append(Edit(change=change, path=(*parents, new), value=written))
            holder[new] = copy.deepcopy(written)
        elif change is Change.SET:
            written = draw(simple)
            edits.append(Edit(change=change, path=path, value=written))
            holder[last] = written
            gone |= below
        elif change is Change.RENAME:
            edits.append(Edit(change=change, path=path, value=new))
            born[new] = first
            for name in list(holder):
                holder[new if name == last else name] = holder.pop(name)
        else:
            edits.append(Edit(change=change, path=path))
            del holder[last]
            gone |= below | {first}
    return data, edits, outcome, gone


def check_comments(before, after, gone):
    """Every comment but those of removed keys is there, in the old order."""
    kept = [
        comment
        for line in before.splitlines()
        if (comment := line.partition("  # " if "  # " in line else "# ")[2]).split()[-1:]
        and comment.split()[0] in ("above", "behind")
        and comment.split()[-1] not in gone
    ]
    found = iter(after.splitlines())
    for comment in kept:
        assert any(line.endswith(f"# {comment}") for line in found), comment


@given(trees_and_edits(), st.sampled_from(["\n", "\r\n"]))
def test_yaml_edits_change_what_they_say_and_nothing_else(drawn, ending):
    data, edits, outcome, gone = drawn
    text = ending.join(yaml_lines(data)) + ending
    result = apply(parse("a.yaml", text.encode()), edits)
    assert json.dumps(yaml.safe_load(result)) == json.dumps(outcome)
    assert result.count("\n") == result.count(ending)
    check_comments(text, result, gone)


@given(trees_and_edits())
def test_python_edits_change_what_they_say_and_nothing_else(drawn):
    data, edits, outcome, gone = drawn
    text = "\n".join(["config = Config(", *python_lines(data), ")", "x = 1  # behind all"]) + "\n"
    moved = [Edit(change=e.change, path=("Config", *e.path), value=e.value) for e in edits]
    result = apply(parse("a.py", text.encode()), moved)
    call = ast.parse(result).body[0].value
    found = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    assert json.dumps(found) == json.dumps(outcome)
    check_comments(text, result, gone)


@given(trees_and_edits(), st.sampled_from([None, 0, 2, "\t"]))
def test_json_edits_change_what_they_say_and_nothing_else(drawn, indent):
    data, edits, outcome, _ = drawn
    text = json.dumps(data, indent=indent)
    result = apply(parse("a.json", text.encode()), edits)
    assert json.dumps(json.loads(result)) == json.dumps(outcome)
    if "\n" not in text:
        assert "\n" not in result


flag_values = st.one_of(st.booleans(), st.integers(), st.floats(allow_nan=False), words)


@given(
    st.dictionaries(names.map("--{}".format), flag_values, min_size=2, max_size=5),
    flag_values,
    st.sampled_from([" ", " \\\n    ", " \\\r\n  "]),
    st.data(),
)
def test_shell_edits_change_what_they_say_and_nothing_else(flags, value, gap, draw):
    quoted = {True: "true", False: "false"}
    written = [
        f"{name} {quoted.get(item, item) if not isinstance(item, str) else repr(item)}"
        for name, item in flags.items()
        if not isinstance(item, float) or "." in str(item)
    ]
    text = f"# above\nexport A=1 B=2\n{gap.join(['torchrun t.py', *written])}  # behind\necho --x\n"
    file = parse("a.sh", text.encode())
    name = draw.draw(st.sampled_from(sorted(flags)))
    expected = dict(file.data["flags"])
    edits = [
        Edit(change=Change.SET, path=("flags", "--new"), value=value),
        Edit(change=Change.SET, path=("env", "C"), value=value),
        Edit(change=Change.REMOVE, path=("env", "A")),
    ]
    if name in expected:
        del expected[name]
        edits.append(Edit(change=Change.REMOVE, path=("flags", name)))
    result = parse("a.sh", apply(file, edits).encode())
    assert result.data["flags"] == {**expected, "--new": value}
    assert result.data["env"] == {"B": 2, "C": value}
    for kept in ("# above\n", "export B=2\n", "# behind\necho --x\n"):
        assert kept in result.text


BEFORE = """\
# run 7
learning_rate: 2e-5   # a string!
'warmup_steps' : "10"
fsdp_config: {version: 1, reshard: true}  # flow
accelerator:
    # which
    mixed: bf16

    deep:
        - {a: 1}
        -   b: 2
            # about c
            c: 3
old: 1  # goes
# next
text: |
  # no comment
  line
null_block:
# end"""
AFTER = """\
# run 7
learning_rate: 2.0e-05   # a string!
warmup : "10"
fsdp_config: {version: 2, reshard: true, cpu: ['no', 1.5]}  # flow
accelerator:
    # which
    mixed: bf16

    deep:
        - {a: 1, z: null}
        -   # about c
            c: 3
    new:
      kwargs:
        each: true
# next
text: |
  # no comment
  line
null_block: {x: 1}
steps: 100
# end"""
EDITS = [
    Edit(change=Change.SET, path=("learning_rate",), value=2e-5),
    Edit(change=Change.RENAME, path=("warmup_steps",), value="warmup"),
    Edit(change=Change.SET, path=("fsdp_config", "version"), value=2),
    Edit(change=Change.SET, path=("fsdp_config", "cpu"), value=["no", 1.5]),
    Edit(change=Change.SET, path=("accelerator", "new", "kwargs", "each"), value=True),
    Edit(change=Change.SET, path=("accelerator", "deep", 0, "z"), value=None),
    Edit(change=Change.REMOVE, path=("accelerator", "deep", 1, "b")),
    Edit(change=Change.REMOVE, path=("old",)),
    Edit(change=Change.SET, path=("null_block", "x"), value=1),
    Edit(change=Change.SET, path=("steps",), value=100),
]


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_an_edited_file_looks_as_a_person_would_have_left_it(ending):
    file = parse("a.yaml", BEFORE.replace("\n", ending).encode())
    assert apply(file, EDITS) == AFTER.replace("\n", ending)


def test_an_edited_call_looks_as_a_person_would_have_left_it():
    text = "Trainer(model, args=Config(lr=2e-5, n=(4)), *rest)  # one line\nConfig(**cfg)\n"
    edits = [
        Edit(change=Change.SET, path=("Config", "dtype"), value="torch.bfloat16"),
        Edit(change=Change.SET, path=("Trainer", "args", "lr"), value=1e-4),
        Edit(change=Change.REMOVE, path=("Config", "n")),
        Edit(change=Change.RENAME, path=("Trainer", "args"), value="config"),
        Edit(change=Change.SET, path=("Config#2", "bf16"), value=True),
    ]
    assert apply(parse("a.py", text.encode()), edits) == (
        "Trainer(model, config=Config(lr=0.0001, dtype=torch.bfloat16), *rest)  # one line\n"
        "Config(**cfg, bf16=True)\n"
    )


def test_a_repeated_key_is_removed_altogether():
    file = parse("a.yaml", b"lr: 1\nx: 2\nlr: 3\n")
    assert apply(file, [Edit(change=Change.REMOVE, path=("lr",))]) == "x: 2\n"
    assert (
        apply(file, [Edit(change=Change.RENAME, path=("lr",), value="y")]) == "y: 1\nx: 2\ny: 3\n"
    )


TIED = "base: &b {a: 1}\nother:\n  <<: *b\n  c: 2\nlist: [*b]\nlr: 1\nold: 2\n"


@pytest.mark.parametrize(
    ("name", "text", "edit", "says"),
    [
        ("a.yaml", TIED, (Change.SET, ("base", "a"), 2), r"^a.yaml:1: cannot set 'base.a'"),
        ("a.yaml", TIED, (Change.SET, ("base", "z"), 2), r"an anchor, a merge key"),
        ("a.yaml", TIED, (Change.SET, ("other", "a"), 2), r"^a.yaml:1: .*written elsewhere"),
        ("a.yaml", TIED, (Change.REMOVE, ("other", "a")), r"written elsewhere"),
        ("a.yaml", TIED, (Change.SET, ("list", 0, "a"), 2), r"written elsewhere"),
        ("a.yaml", TIED, (Change.SET, ("list", 0, "z"), 2), r"written elsewhere"),
        ("a.yaml", TIED, (Change.SET, ("base",), 2), r"an anchor"),
        ("a.yaml", TIED, (Change.REMOVE, ("list", 0)), r"it is an item of a list"),
        ("a.yaml", TIED, (Change.REMOVE, ("nope",)), r"there is no such key"),
        ("a.yaml", TIED, (Change.RENAME, ("old",), "lr"), r"there is 'lr' already"),
        ("a.yaml", TIED, (Change.SET, ("lr", "x"), 1), r"1 is no mapping"),
        ("a.yaml", TIED, (Change.SET, ("lr",), object()), r"yaml has no way to write"),
        ("a.py", "f(a=1)", (Change.RENAME, ("f", "a"), "b c"), r"'b c' is no name of an argument"),
        ("a.py", "f(a=1)", (Change.SET, ("g", "a"), 1), r"only values that are there"),
        ("a.py", "c = {'a': 1}\nf(**c)", (Change.SET, ("f", "a"), 2), r"^a.py:1: .*elsewhere"),
        ("a.py", "f(a=[1])", (Change.SET, ("f", "a"), float("inf")), r"same expression"),
        ("a.sh", "torchrun t.py --a 1", (Change.SET, ("flags", "--a"), {"x": 1}), r"words of a"),
        ("a.sh", "torchrun t.py --a 1", (Change.SET, ("other",), 1), r"an environment, a program"),
        ("a.json", '{"a": 1}', (Change.SET, ("a",), {1}), r"json has no way to write"),
    ],
)  # fmt: skip
def test_an_edit_that_cannot_be_made_in_place_is_refused_in_one_line(name, text, edit, says):
    change, path, *value = edit
    with pytest.raises(SpecError, match=says) as caught:
        apply(
            parse(name, text.encode()), [Edit(change=change, path=path, value=(value or [None])[0])]
        )
    assert "\n" not in str(caught.value)
