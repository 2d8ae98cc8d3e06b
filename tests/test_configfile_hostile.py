"""Broken and hostile config files: one clear line, within a second, in bounded memory."""

import os
import re
import time
import tracemalloc

import pytest

from batchplan.configfile import parse, read
from batchplan.configfile.limits import MAX_BYTES, MAX_DEPTH, MAX_VALUES
from batchplan.errors import SpecError

SECONDS = 1.0
MEMORY_BYTES = 100 * 2**20


def refusal_of(name: str, content: bytes | str) -> str:
    """Return the one line that refuses a file, having checked how long it took."""
    data = content.encode() if isinstance(content, str) else content
    start = time.process_time()
    with pytest.raises(SpecError) as caught:
        parse(name, data)
    assert time.process_time() - start < SECONDS
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 250
    assert message.startswith(f"{name}:")
    return message


def filling(piece: str) -> str:
    """Return as many repetitions as the limit of bytes allows."""
    return piece * (MAX_BYTES // len(piece.encode()) - 10)


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]\n" for level in range(1, 12)
)
MERGED_LAUGHS = "a0: &a0 {k: 1, l: 2}\n" + "".join(
    f"a{level}: &a{level} {{x{level}: *a{level - 1}, y{level}: *a{level - 1}, <<: *a{level - 1}}}\n"
    for level in range(1, 60)
)
PYTHON_LAUGHS = "a0 = [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"a{level} = [{', '.join([f'a{level - 1}'] * 9)}]\n" for level in range(1, 12)
)


REFUSED = [
    # Bytes.
    ("a.yaml", b"a: 1\n" * (2**20), r"more than 262,144 bytes"),
    ("a.yaml", b"", r"is empty"),
    ("a.yaml", b"  \n\n", r"is empty"),
    ("a.yaml", b"# nothing\n", r":1: is empty"),
    ("a.yaml", b"a: 1\nb: \x00\n", r":2: is binary: byte 0x00 at offset 8"),
    ("a.json", b"\x80\x02}q\x00.", r"is binary"),
    ("a.py", b"PK\x03\x04", r"is binary"),
    ("a.yaml", "a: 1\n".encode("utf-16"), r"is UTF-16. Save it as UTF-8"),
    ("a.yaml", "a: 1\n".encode("utf-32"), r"is UTF-32. Save it as UTF-8"),
    ("a.yaml", "a: 1\nb: é\n".encode("latin-1"), r":2: is not UTF-8: byte 0xe9 at offset 8"),
    # YAML.
    ("a.yaml", LAUGHS, r":\d+: stands for more than 10,000 values"),
    ("a.yaml", MERGED_LAUGHS, r":\d+: stands for more than 10,000 values"),
    ("a.yaml", "a: &a\n  b: *a\n", r":2: the alias '\*a' stands inside its own anchor"),
    ("a.yaml", "a: &a [*a]\n", r":1: the alias"),
    ("a.yaml", "a: &a {<<: *a}\n", r":1: the alias"),
    ("a.yaml", "a: &a {*a : 1}\n", r":1: the alias"),
    ("a.yaml", "a: *b\n", r":1: the alias '\*b' has no anchor"),
    ("a.yaml", "a: &a 1\nb: &a 2\nc: *b\n", r":\d: the a"),
    ("a.yaml", "[a, b]: 1\n", r":1: a mapping or list is no key"),
    ("a.yaml", "a: &a {x: 1}\n? *a\n: 1\n", r":2: a mapping or list is no key"),
    ("a.yaml", "a: 1\n<<: 3\n", r":2: '<<' merges mappings only"),
    ("a.yaml", "a: 1\n<<: [{x: 1}, 3]\n", r":2: '<<' merges mappings only"),
    ("a.yaml", "a: <<\n", r":1: '<<' and '=' are no values"),
    ("a.yaml", "x: 1\na: !!python/object/apply:os.system [ls]\n", r":2: the tag '!!python/obj"),
    ("a.yaml", "a: !mine 1\n", r":1: the tag '!mine' is not read"),
    ("a.yaml", "a: !!set {x, y}\n", r":1: the tag '!!set' is not read"),
    ("a.yaml", "a: 1\n---\nb: 2\n", r":2: a second document begins here"),
    ("a.yaml", "- a\n- b\n", r":1: is no mapping but 'list'"),
    ("a.yaml", "plain words\n", r":1: is no mapping but 'str'"),
    ("a.yaml", "a: b: c\n", r":1: not valid YAML: mapping values are not allowed here"),
    ("a.yaml", "a:\n\t- b\n", r":2: not valid YAML: .*cannot start any token"),
    ("a.yaml", "a: 'x\n", r":\d: not valid YAML"),
    ("a.yaml", "a: 1\nb: \x7f\n", r":2: character 0x7f is not allowed in YAML"),
    ("a.yaml", "a: 2026-13-45\n", r":1: '2026-13-45' looks like a timestamp and is none"),
    ("a.yaml", "a: 0b_\n", r":1: '0b_' looks like a int and is none"),
    ("a.yaml", "a: !!int x\n", r":1: 'x' looks like a int and is none"),
    ("a.yaml", "a: !!bool x\n", r":1: 'x' looks like a bool and is none"),
    ("a.yaml", "a: !!binary é\n", r":1: "),
    ("a.yaml", "a: " + filling("9"), r":1: a number of 2\d\d,\d+ characters"),
    ("a.yaml", "a: 1" + filling(":1"), r":1: a number of 2\d\d,\d+ characters"),
    ("a.yaml", "a: 1" + ":59" * 300 + ".5\n", r":1: '1:59.*looks like a float and is none"),
    ("a.yaml", "a: " + filling("["), r":1: is nested deeper than 100 levels"),
    ("a.yaml", "a: " + filling("{"), r":1: is nested deeper than 100 levels"),
    ("a.yaml", filling("- "), r":1: is nested deeper than 100 levels"),
    ("a.yaml", filling("? "), r":1: is nested deeper than 100 levels"),
    ("a.yaml", filling("a: 1\n"), r":\d+: stands for more than 10,000 values"),
    ("a.yaml", "a: [" + filling("1,"), r":1: stands for more than 10,000 values"),
    ("a.yaml", filling("\n") + "a: b: c", r":\d+: not valid YAML"),
    ("a.yaml", filling("# x\n") + "a: b: c", r":\d+: not valid YAML"),
    ("a.yaml", "a: " + filling("x") + ": c", r":1: not valid YAML"),
    ("a.yaml", "a: '" + filling("x\n "), r":\d+: not valid YAML"),
    # JSON.
    ("a.json", '{"a": 1,}', r":1: not valid JSON: a comma before '}'"),
    ("a.json", '{"a": [1,\n]}', r":1: not valid JSON: a comma before ']'"),
    ("a.json", '{\n// no\n"a": 1}', r":2: JSON takes no comments"),
    ("a.json", '{"a": 1 # no\n}', r":1: JSON takes no comments"),
    ("a.json", "{'a': 1}", r":1: not valid JSON: expected a key in double quotes, found"),
    ("a.json", '{"a" 1}', r":1: not valid JSON: expected ':', found '1'"),
    ("a.json", '{"a": 1} {}', r":1: not valid JSON: expected the end of the file, found"),
    ("a.json", '{"a":\n', r":\d: not valid JSON: expected a value, found the end of the file"),
    ("a.json", '{"a": "x\n"}', r":1: not valid JSON: Invalid control character"),
    ("a.json", "[1]", r":1: is no JSON object"),
    ("a.json", "nope", r":1: not valid JSON: expected a value, found 'n'"),
    ("a.json", '{"a": ' + filling("9"), r":1: a number of 2\d\d,\d+ digits"),
    ("a.json", '{"a": ' + filling("["), r":1: is nested deeper than 100 levels"),
    ("a.json", filling('{"a":'), r":1: is nested deeper than 100 levels"),
    ("a.json", '{"a": [' + filling("1,"), r":1: stands for more than 10,000 values"),
    ("a.json", '{"a": "' + filling("\\"), r":1: not valid JSON: Unterminated string"),
    # Python.
    ("a.py", "x = 1\nf(a=\n", r":2: not valid Python: '\(' was never closed"),
    ("a.py", "%%time\nx = 1\n", r":1: not valid Python"),
    ("a.py", "f(a=" + filling("["), r"words and signs, more than 50,000"),
    ("a.py", "f(a=" + "[" * 45_000, r":1: not valid Python: too many nested parentheses"),
    ("a.py", "f(a=" + "-" * 45_000 + "1)", r":1: an expression is nested too deeply"),
    ("a.py", "f(a=" + "1+" * 22_000 + "1)", r":1: an expression is nested too deeply"),
    ("a.py", "f(a=b" + ".c" * 22_000 + ")", r":1: an expression is nested too deeply"),
    ("a.py", "f(a=" + "9" * 10_000 + ")", r":1: not valid Python: Exceeds the limit"),
    ("a.py", PYTHON_LAUGHS + "f(x=a11)", r":\d+: stands for more than 10,000 values"),
    (
        "a.py",
        "c = dict(" + ", ".join(f"k{i}=1" for i in range(999)) + ")\n" + "f(**c)\n" * 999,
        r":\d+: stands for more than 10,000 values",
    ),
    ("a.py", "f(" + filling("0,") + ")", r"words and signs, more than 50,000"),
    ("a.py", "f(x=[" + "0," * 20_000 + "])", r":1: stands for more than 10,000 values"),
    # Shell.
    ("a.sh", "python a.py --x 'y\n", r":1: a quote is never closed"),
    ("a.sh", 'A="' + filling("\\x"), r":1: a quote is never closed"),
    ("a.sh", "A=$(" + filling("$("), r":1: a '\$' bracket is never closed"),
    ("a.sh", "A=`ls", r":1: a backquote is never closed"),
    ("a.sh", "# nothing\n", r":1: holds no command"),
    ("a.sh", filling("a "), r":1: stands for more than 10,000 values"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "says"), REFUSED, ids=[f"{case[0]} {case[2]}" for case in REFUSED]
)
def test_a_bad_file_is_refused_in_one_line(name, content, says):
    assert re.search(says, refusal_of(name, content))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.yaml", LAUGHS),
        ("a.json", '{"a": [' + filling("1,")),
        ("a.py", "f(x=[" + "0," * 20_000 + "])"),
        ("a.sh", filling("a ")),
    ],
    ids=["laughs", "json", "python", "shell"],
)
def test_refusing_takes_little_memory(name, content):
    tracemalloc.start()
    with pytest.raises(SpecError):
        parse(name, content.encode())
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < MEMORY_BYTES


ALLOWED = [
    ("a.yaml", "a: " + filling("x")),
    ("a.yaml", "a: 1\n" + filling("#")),
    ("a.yaml", "a: |\n" + filling(" x\n")),
    ("a.json", '{"a": "' + filling("x") + '"}'),
    ("a.py", "# " + filling("é") + "\nf(a='é', b=2)"),
    ("a.py", "f(a='" + filling("é")[: MAX_BYTES // 2 - 100] + "', b=2)"),
    ("a.sh", "torchrun a.py --x '" + filling("x")[:-20] + "'"),
    ("a.sh", "torchrun a.py --x y" + filling("\\\n")),
    ("a.sh", "torchrun a.py --x y <<E\n" + filling("E \n")),
    ("a.yaml", "a: " + "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1)),
    ("a.json", '{"a": ' + "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1) + "}"),
    ("a.yaml", "a: [" + "1," * (MAX_VALUES - 10) + "]"),
    ("a.json", '{"a": [' + "1," * (MAX_VALUES - 10) + "1]}"),
    ("a.py", "if a:\n  f(x=1)\n" + "elif b:\n  f(x=1)\n" * 900),
    ("a.py", "f(x=" + "[" * 150 + "]" * 150 + ")"),
    ("a.py", "a = b\nb = a\nc = c + c\nd = [d]\nf(a=a, c=c, d=d)"),
    ("a.py", "f(x=10**10**10, y=2**-9, z=9.0**999, w=1/0, v=[1]*10**9, u='x'*10**9)"),
    ("a.json", '{"a": 1e999, "b": -1E-999, "c": ' + "9" * 1000 + "}"),
]


@pytest.mark.parametrize(
    ("name", "content"), ALLOWED, ids=[f"{case[0]} {case[1][:20]!r}" for case in ALLOWED]
)
def test_the_largest_file_that_is_allowed_is_read_in_little_time(name, content):
    start = time.process_time()
    file = parse(name, content.encode())
    assert time.process_time() - start < 2 * SECONDS
    assert file.entries


def test_a_message_shows_little_of_a_long_key_and_a_strange_name():
    with pytest.raises(SpecError, match=r"^'a\\nb.yaml':1: the alias '\*x+…") as caught:
        parse("a\nb.yaml", b"a: *" + b"x" * 10_000)
    assert len(str(caught.value)) < 200


def test_only_regular_files_are_opened_and_a_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    for path in (tmp_path / "pipe.yaml", tmp_path, "/dev/zero"):
        with pytest.raises(SpecError, match="is no regular file"):
            read(path)
    with pytest.raises(SpecError, match="cannot be read: No such file"):
        read(tmp_path / "missing.yaml")
    with pytest.raises(SpecError, match="cannot be read: embedded null byte"):
        read("a\0b")


def test_a_huge_file_is_not_read_to_its_end_and_a_link_is_followed(tmp_path):
    with (tmp_path / "huge.yaml").open("wb") as huge:
        huge.truncate(2**40)  # sparse
    with pytest.raises(SpecError, match="more than 262,144 bytes"):
        read(tmp_path / "huge.yaml")
    (tmp_path / "a.yaml").write_bytes(b"\xef\xbb\xbfa: 1\n")
    (tmp_path / "link.yml").symlink_to(tmp_path / "a.yaml")
    assert read(tmp_path / "link.yml").data == {"a": 1}


def test_nothing_is_executed(tmp_path):
    mark = tmp_path / "mark"
    parse("a.py", f"import os\nos.system('touch {mark}')\nf(a=os.system('touch {mark}'))".encode())
    parse("a.sh", f"A=$(touch {mark}) python `touch {mark}` --x $(touch {mark})".encode())
    assert not mark.exists()
