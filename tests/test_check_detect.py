"""Whose a config is: told from the keys, calls and programs that people publish."""

from __future__ import annotations

import pytest
from published_configs import PUBLISHED

from batchplan.checker import detect_trainer
from batchplan.configfile import parse
from batchplan.errors import SpecError
from batchplan.sources.trainer_keys import load_trainer_keys
from batchplan.trainers import TRAINERS
from batchplan.trainers.format import format_of

FILES = [(trainer, name) for trainer, files in PUBLISHED.items() for name in files]


def detected(*texts: str, name: str = "run.yaml") -> str:
    files = tuple(parse(f"{place}-{name}", text.encode()) for place, text in enumerate(texts))
    return detect_trainer(files, load_trainer_keys)


@pytest.mark.parametrize(("trainer", "name"), FILES)
def test_a_published_config_is_taken_for_its_trainers(trainer, name):
    assert detected(PUBLISHED[trainer][name], name=name) == trainer


def test_every_trainer_has_three_published_configs():
    assert set(PUBLISHED) == set(TRAINERS)
    assert all(len(files) >= 3 for files in PUBLISHED.values())


def test_a_mark_is_a_key_of_no_other_trainer():
    """A key that several know tells nothing of whose the file is; programs are no keys."""
    for trainer in TRAINERS:
        own = _main_keys(trainer)
        others = {key for other in TRAINERS if other != trainer for key in _main_keys(other)}
        assert format_of(trainer).marks & own & others == set(), trainer


def test_a_key_named_like_a_program_is_no_mark_of_it():
    """``trl`` is a section of axolotl's, and ``deepspeed`` a key of many."""
    text = PUBLISHED["axolotl"]["qlora.yml"] + "trl: {beta: 0.001}\ndeepspeed: zero1\n"
    assert detected(text) == "axolotl"


def test_keys_of_the_trainer_alone_are_the_trainers_and_not_those_built_on_it():
    assert detected("output_dir: out\nper_device_train_batch_size: 2\n") == "hf-trainer"


@pytest.mark.parametrize("trainer", ["hf-trainer", "trl", "llamafactory", "ms-swift", "axolotl"])
@pytest.mark.parametrize("beside", ["accelerate", "deepspeed"])
def test_what_stands_beside_a_config_is_not_the_run(trainer, beside):
    for text in PUBLISHED[beside].values():
        if "import" not in text:
            for name, main in PUBLISHED[trainer].items():
                if name.endswith(("yaml", "yml")):
                    assert detected(main, text) == trainer


def test_a_script_that_loops_is_the_run_whatever_config_it_reads():
    files = (
        parse("train.py", PUBLISHED["accelerate"]["loop.py"].encode()),
        parse("run.yaml", b"learning_rate: 0.0001\nseed: 1\nnum_train_epochs: 3\n"),
    )
    assert detect_trainer(files, load_trainer_keys) == "accelerate"


def test_keys_of_the_users_own_do_not_hide_the_trainer():
    own = "".join(f"my_setting_{number}: 1\n" for number in range(40))
    assert detected(PUBLISHED["hf-trainer"]["plain.yaml"] + own) == "hf-trainer"


def test_files_of_nobody_are_refused():
    for text in ("colour: blue\n", "services: {web: {image: x}}\nversion: '3'\n", "{}\n"):
        with pytest.raises(SpecError, match="Cannot tell which trainer"):
            detected(text)


def _main_keys(trainer: str) -> set[str]:
    keys = load_trainer_keys(trainer)
    beside = () if "config" not in keys.files else set(keys.files) - {"config"}
    return {
        *keys.renamed,
        *(name for role, file in keys.files.items() if role not in beside for name in file.keys),
    }
