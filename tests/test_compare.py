"""Whole runs: which device, how many, by when and for how much; and axes of several values."""

from __future__ import annotations

import io

import pytest
import yaml

import batchplan
from batchplan.errors import SpecError
from batchplan.render.compare import print_comparison
from batchplan.render.recommend import print_recommendation
from batchplan.sources import find_gpu, load_gpus

MODEL = "qwen2.5-0.5b"
ASKED = {"target_tokens": "1M", "seq_len": 1024}
A100_PRICE, B200_PRICE = 1.5, 9.0


@pytest.fixture
def large_model(toy_model, monkeypatch):
    """A toy of 1.3B parameters, which not every device can train alone."""
    from strategies import toy_profile

    def profile(*, recipe, seq_len, **_):
        return toy_profile(
            num_layers=24,
            hidden_size=2048,
            vocabulary=50_000,
            method=recipe.method,
            checkpointing=recipe.checkpointing,
        )

    monkeypatch.setattr("batchplan.api.profiles.activation_profile", profile)


def test_every_device_with_known_rates_is_compared_and_the_fewest_win(large_model):
    answer = batchplan.compare(MODEL, limit=100, **ASKED)
    counts = [offer.plan.batch.num_ranks for offer in answer.offers]
    assert counts == sorted(counts)
    assert counts[0] == 1
    assert counts[-1] > 1
    known = [row for row in load_gpus() if row.usable_bytes and row.to_gpu().bf16_tflops]
    assert answer.num_compared == len(known) > 50
    assert len({offer.gpu.name for offer in answer.offers}) == len(answer.offers)
    for offer in answer.offers:
        assert offer.plan.fits


def test_each_row_is_what_asking_for_that_device_gives(large_model):
    answer = batchplan.compare(MODEL, limit=4, **ASKED)
    for offer in answer.offers:
        alone = batchplan.recommend(
            MODEL, gpu=offer.gpu.name, devices="auto", limit=1, optimize="devices", **ASKED
        )
        assert alone.plans[0].batch == offer.plan.batch
        assert alone.plans[0].memory.peak_bytes == offer.plan.memory.peak_bytes


def test_prices_decide_what_is_cheapest_and_leave_out_what_has_none(large_model, tmp_path):
    prices = tmp_path / "prices.csv"
    prices.write_text(f"gpu,price\n# on demand\na100-80gb,{A100_PRICE}\nb200,{B200_PRICE}\n")
    asked = ASKED | {"epoch_tokens": "100M", "gpu_price": prices, "devices": 1}
    answer = batchplan.compare(MODEL, **asked)
    rows = answer.to_dict()["comparison"]
    assert {row["device"]["name"] for row in rows} == {
        find_gpu("a100-80gb").name,
        find_gpu("b200").name,
    }
    for row in rows:
        price = A100_PRICE if "A100" in row["device"]["name"] else B200_PRICE
        run = row["training"]
        hours = run["seconds"] * row["plan"]["num_ranks"] / 3600
        assert run["device_hours"] == pytest.approx(hours)
        assert run["cost"] == pytest.approx(hours * price)
    assert rows[0]["training"]["cost"] <= rows[1]["training"]["cost"]


def test_the_comparison_is_printed_in_80_columns(large_model):
    page = io.StringIO()
    document = batchplan.compare(MODEL, epoch_tokens="10M", gpu_price=2, **ASKED).to_dict()
    print_comparison(document, file=page, width=80)
    lines = page.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert sum("×" in line for line in lines) >= len(document["comparison"])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"optimize": "speed"}, "--optimize 'speed': must be one of throughput"),
        ({"deadline": 3}, "--deadline needs the size of the data"),
        ({"epochs": 3}, "--epochs needs the size of the data"),
        ({"epoch_tokens": "1M", "deadline": -3}, "--deadline -3 must be a number above 0, .* 24"),
        ({"epoch_tokens": "1M", "deadline": 1e9}, "--deadline .* absurdly large"),
        ({"gpu_price": "missing.csv"}, "neither a price for one device and hour nor a file"),
        ({"gpu_price": -1}, "--gpu-price"),
        ({"checkpointing": "none,some"}, "'some' is none of none, selective, full"),
        ({"sharding": "zero5"}, "--sharding 'zero5': must be ddp, zero1"),
        ({"method": "dora"}, "--method 'dora': must be full, lora or qlora"),
        ({"gpu": "t4", "attention": "flash"}, "does not run on T4"),
        ({"gpu": "t4", "attention": "flash,"}, "is none of eager"),
    ],
)
def test_bad_input_is_one_clear_line(toy_model, wrong, message):
    with pytest.raises(SpecError, match=message) as caught:
        batchplan.recommend(MODEL, **({"gpu": "a100-80gb"} | ASKED | wrong))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a100-80gb;2\n", "line 1"),
        ("no-such-gpu,2\n", "no-such-gpu"),
        ("# nothing\n", "holds no"),
        ("h100-sxm,2\n", "has no line for A100 SXM 80GB"),
    ],
)
def test_a_price_file_is_refused_with_its_line(toy_model, tmp_path, text, message):
    path = tmp_path / "prices.csv"
    path.write_text(text)
    with pytest.raises(SpecError, match=message):
        batchplan.recommend(MODEL, gpu="a100-80gb", gpu_price=path, epoch_tokens="1M", **ASKED)


def test_several_values_of_an_axis_are_searched_and_told(toy_model):
    both = {"checkpointing": "none,full", "sharding": "zero2, zero3", "devices": 8}
    answer = batchplan.recommend(MODEL, gpu="a100-80gb", limit=9, **both, **ASKED)
    found = {(p.recipe.sharding.value, p.recipe.checkpointing.value) for p in answer.plans}
    assert found == {(s, c) for s in ("zero2", "zero3") for c in ("none", "full")}
    assert answer.inputs["checkpointing"] == "none,full"
    again = batchplan.recommend(**answer.inputs)
    assert [plan.batch for plan in again.plans] == [plan.batch for plan in answer.plans]


def test_releases_that_take_none_of_our_keys_are_planned_for_all_the_same(toy_model, monkeypatch):
    # They train the plan, and can be traced; only the config needs later ones.
    old = {"torch": "2.4.0", "transformers": "4.45.2"}
    monkeypatch.setattr("batchplan.api.request.library_versions", lambda *_: old)
    asked = ASKED | {"gpu": "a100-80gb", "devices": 8, "limit": 9}
    answer = batchplan.recommend(MODEL, sharding="zero2,fsdp-full", **asked)
    assert {plan.recipe.sharding.value for plan in answer.plans} == {"zero2", "fsdp-full"}
    # Its best plan is FSDP's, whose keys are of 5.10; any other would need 4.56.
    assert answer.plans[0].recipe.sharding.value.startswith("fsdp")
    assert answer.to_dict()["config"]["obstacles"] == ["it needs transformers>=5.10, not 4.45.2"]


def test_values_of_which_the_trainer_can_run_none_are_refused_in_its_words(toy_model):
    asked = ASKED | {"gpu": "a100-80gb", "devices": 8, "trainer": "torchtune"}
    with pytest.raises(
        SpecError, match=r"torchtune: .*zero2.*it takes --sharding fsdp-full, fsdp-grad-op"
    ):
        batchplan.recommend(MODEL, sharding="zero2,zero3", **asked)


@pytest.mark.parametrize(
    ("trainer", "devices", "shardings"),
    [
        # full_finetune_distributed shards with FSDP whatever is asked for, and needs several
        ("torchtune", 4, {"fsdp-full", "fsdp-grad-op"}),
        ("torchtune", 1, {"ddp"}),
        # masters, as full fine-tuning has by default, are DeepSpeed's on one device
        ("hf-trainer", 1, {"zero1"}),
    ],
)
def test_any_sharding_is_one_that_so_many_devices_run(toy_model, trainer, devices, shardings):
    asked = ASKED | {"gpu": "a100-80gb", "devices": devices, "trainer": trainer, "limit": 99}
    answer = batchplan.recommend(MODEL, sharding="any", **asked)
    assert {plan.recipe.sharding.value for plan in answer.plans} == shardings
    assert not answer.to_dict()["config"]["obstacles"]


def test_any_value_stays_with_what_the_trainer_can_run(toy_model):
    answer = batchplan.recommend(
        MODEL, gpu="a100-80gb", devices=4, checkpointing="any", offload="any", limit=99, **ASKED
    )
    assert {plan.recipe.checkpointing.value for plan in answer.plans} == {"none", "full"}
    assert {plan.recipe.offload.value for plan in answer.plans} == {"none", "optimizer", "params"}
    for plan in answer.plans:
        assert not answer.to_dict()["config"]["obstacles"]
        assert plan.fits


def test_a_run_takes_its_steps_and_its_devices(toy_model):
    asked = {"epoch_tokens": "50M", "epochs": 3, "gpu_price": 2.5, "devices": 4}
    answer = batchplan.recommend(MODEL, gpu="a100-80gb", **asked, **ASKED)
    best = answer.plans[0]
    run = answer.to_dict()["plans"][0]["training"]
    steps = 3 * -(-50_000_000 // best.batch.global_batch_tokens)
    assert answer.to_dict()["epoch"]["steps"] * 3 == steps
    config = yaml.safe_load(answer.config()[0].text)
    assert config["num_train_epochs"] == 3
    assert (run["tokens"], run["steps"]) == (150_000_000, steps)
    assert run["seconds"] == pytest.approx(steps * best.step_time.mid)
    assert run["cost"] == pytest.approx(run["seconds"] / 3600 * 4 * 2.5)


def test_a_deadline_alone_asks_for_the_fewest_devices_in_time(toy_model):
    asked = ASKED | {"gpu": "a100-80gb", "epoch_tokens": "1B"}
    slow = batchplan.recommend(MODEL, devices=1, **asked)
    hours = slow.to_dict()["plans"][0]["training"]["seconds"] / 3600
    answer = batchplan.recommend(MODEL, devices="1..8", deadline=hours / 2.5, **asked)
    run = answer.to_dict()["plans"][0]
    assert run["num_ranks"] == 3
    assert run["training"]["seconds"] <= hours / 2.5 * 3600 * 1.01


def test_an_epoch_takes_as_long_as_its_rows_are_filled(toy_model, tmp_path):
    lengths = tmp_path / "lengths.txt"
    lengths.write_text("\n".join(["100"] * 900 + ["1000"] * 100))
    answer = batchplan.recommend(
        MODEL, gpu="a100-80gb", lengths=lengths, target_sequences=64, micro_batch=4, gpu_price=1
    )
    document = answer.to_dict()
    plan, best = document["lengths"]["plan"], document["plans"][0]
    priced = plan["rows_per_step"] * plan["row_tokens"]
    assert plan["slots_per_step"] < 0.6 * priced
    expected = best["step_seconds"]["mid"] * plan["slots_per_step"] / priced
    assert document["epoch"]["seconds"] == pytest.approx(document["epoch"]["steps"] * expected)
    assert best["training"]["seconds"] == pytest.approx(document["epoch"]["seconds"])


def test_tokens_of_a_run_are_those_of_the_data_whatever_is_padded(toy_model, tmp_path):
    lengths = tmp_path / "lengths.txt"
    lengths.write_text("\n".join(["100"] * 900 + ["1000"] * 100))
    answer = batchplan.recommend(
        MODEL, gpu="a100-80gb", lengths=lengths, target_tokens=9_500, epochs=2, micro_batch=1
    )
    document = answer.to_dict()
    assert document["epoch"]["tokens"] == 900 * 100 + 100 * 1000
    assert document["plans"][0]["training"]["tokens"] == 2 * 190_000
    # 9,500 tokens of the data are 50 rows of 190: 20 steps, and 1,900 tokens would make 100.
    assert document["epoch"]["steps"] == 20
    (few,) = (each for each in document["epoch"]["caveats"] if each["code"] == "few-steps")
    assert "A batch of 1,900 tokens makes 100." in few["text"]


@pytest.mark.parametrize("name", ["pareto", "rescues"])
def test_what_is_about_one_device_is_refused_for_all_of_them(toy_model, name):
    with pytest.raises(SpecError, match=f"--{name} is about one device"):
        batchplan.compare(MODEL, **{name: True}, **ASKED)


def test_the_inputs_of_a_comparison_give_it_again(large_model):
    answer = batchplan.compare(MODEL, limit=4, **ASKED).to_dict()
    inputs = {name: value for name, value in answer["inputs"].items() if name != "gpu"}
    assert batchplan.compare(**inputs).to_dict()["comparison"] == answer["comparison"]


def page_of(answer, width):
    page = io.StringIO()
    print_recommendation(answer.to_dict(), file=page, width=width)
    return page.getvalue()


def test_what_would_be_faster_and_smaller_is_printed_once(large_model):
    answer = batchplan.recommend(MODEL, gpu="a100-80gb", devices=2, rescues=True, **ASKED)
    assert answer.found.speedups
    assert answer.found.savings
    page = page_of(answer, 80)
    assert page.count("What would make the best plan faster") == 1
    assert page.count("What would make the best plan smaller") == 1


def test_what_would_be_faster_is_told_where_it_takes_another_trace(toy_model):
    asked = ASKED | {"attention": "eager", "checkpointing": "none"}
    found = batchplan.recommend(MODEL, gpu="a100-80gb", rescues=True, **asked).found
    assert "sdpa" in [each.change.get("attention") for each in found.speedups]


def test_rows_that_differ_in_attention_alone_can_be_told_apart(toy_model):
    answer = batchplan.recommend(
        MODEL, gpu="a100-80gb", attention="sdpa,eager", checkpointing="full", **ASKED
    )
    assert {plan.recipe.attention.value for plan in answer.plans} == {"sdpa", "eager"}
    page = page_of(answer, 80)
    table = page[: page.index("Best plan")].split("ckpt  attn")[1].splitlines()[1:-2]
    assert [word for row in table for word in row.split() if word in ("sdpa", "eager")] == [
        plan.recipe.attention.value for plan in answer.plans
    ]
    alone = page_of(batchplan.recommend(MODEL, gpu="a100-80gb", **ASKED), 80)
    assert "ckpt  attn" not in alone


def test_a_narrow_page_keeps_every_plan_on_one_line(toy_model):
    answer = batchplan.recommend(MODEL, gpu="a100-80gb", devices=8, offload="any", **ASKED)
    lines = page_of(answer, 60).splitlines()
    start = next(at for at, line in enumerate(lines) if line.startswith("#  b×K×N"))
    table = lines[start + 1 : start + 1 + len(answer.plans)]
    assert [line.split()[0] for line in table] == [
        str(rank) for rank in range(1, len(answer.plans) + 1)
    ]
    assert all(len(line) <= 60 for line in lines[start:][: len(table) + 1])


def test_the_best_plan_is_named_with_its_offload(toy_model):
    asked = ASKED | {"sharding": "zero3", "offload": "optimizer", "checkpointing": "full"}
    page = page_of(batchplan.recommend(MODEL, gpu="a100-80gb", devices=8, **asked), 100)
    (title,) = (line for line in page.splitlines() if line.startswith("Best plan"))
    assert title.endswith("zero3, checkpointing full, offload optimizer")
