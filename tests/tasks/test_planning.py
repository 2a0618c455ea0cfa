"""What a sweep will take, worked out by hand."""

from dataclasses import replace
from pathlib import Path

import pytest

from igpo_core.config import ExperimentConfig, OptimizerConfig, WarmStart
from igpo_core.estimates import Shape
from igpo_core.step_costs import DECODING_REACHES, LAYER_STARTS, MOVED_PACKED, MOVED_PADDED, PASSES_REACH, TURN_TAKES
from tasks.runs.devices import Spread
from tasks.runs.planning import (
    REACHED,
    REST,
    Speed,
    Timing,
    Tokens,
    count_gpu_timing,
    count_timing,
    data_key,
    disk,
    estimate,
    keep_timing,
    known_timing,
    measure_speed,
    policy_key,
    read_timing,
    run_seconds,
    shared_seconds,
    spell,
    warm_start_seconds,
)

# rollouts of 6 turns of at most 16 tokens and 512 in all, as they are without settings
TIMING = Timing(step=0.5, rollouts=128, rollout=0.002, warm_start=100.0, weights=1_000_000, sampled=96, longest=512)


def experiment(**training: object) -> ExperimentConfig:
    return ExperimentConfig.model_validate(
        {
            "rollout": {"questions": 16, "group_size": 16},
            "training": {"epochs": 4, "steps_per_epoch": 10, **training},
            "evaluation": {"every": 5, "dev_questions": 100, "test_questions": 500},
        }
    )


def test_seconds_of_a_run() -> None:
    # a start of 4 s, 40 steps of 256 rollouts, 1 s each; 9 x 100 dev and 500 x 3 test rollouts of 2 ms
    assert run_seconds(experiment(), TIMING) == pytest.approx(4 + 40 + 1.8 + 3.0)
    assert run_seconds(experiment(budget="seconds", amount=10), TIMING) == pytest.approx(10 + 8.8)
    assert run_seconds(experiment(budget="seconds", amount=1000), TIMING) == pytest.approx(48.8)
    assert run_seconds(experiment(budget="sampled_tokens", amount=1000), TIMING) == pytest.approx(48.8)


def test_runs_that_share_a_card_take_as_long_as_those_of_the_fullest_one() -> None:
    start, run = warm_start_seconds(experiment(), TIMING), run_seconds(experiment(), TIMING)
    assert run == pytest.approx(48.8)
    for spread, slower in ((Spread(4), 1), (Spread(4, 4), 1), (Spread(3, 2), 2), (Spread(4, 1), 4)):
        assert shared_seconds(experiment(), TIMING, spread) == pytest.approx((start * slower, run * slower))


def test_words(tmp_path: Path) -> None:
    text = estimate(
        [experiment()] * 30, [experiment()] * 5, TIMING, Spread(2), tmp_path
    )  # (30 x 48.8 + 5 x 104) / 2 = 992 s
    assert text.startswith("about 17 min for 30 runs of about 49 s (a step of 128 rollouts took 0.5 s here), 0.2 GB")
    # a finished run keeps three copies of the weights, one that goes on has eight
    assert disk(30, 5, 1_000_000) == 30 * (3 * 1_000_000 + REST) + 5 * 1_000_000 == 155_000_000
    assert disk(30, 5, 1_000_000, 2) == 165_000_000 and disk(1, 0, 1_000_000, 2) == 8_000_000 + REST
    assert "warning" not in text
    huge = Timing(0.5, 128, 0.002, None, 10**15)
    assert "warning: the disk will be full" in estimate([experiment()], [], huge, Spread(2), tmp_path)
    assert [spell(90), spell(600), spell(9000)] == ["90 s", "10 min", "2.5 h"]


def test_a_timing_is_found_again(tmp_path: Path) -> None:
    cpu, gpu = experiment(), experiment(device="cuda")
    timing = replace(TIMING, policy=policy_key(cpu), data=data_key(cpu), questions={"dev": 1, "test": 2})
    assert read_timing(tmp_path, "sweep", cpu) is None
    keep_timing(tmp_path, "sweep", timing)
    assert read_timing(tmp_path, "sweep", cpu) == timing
    assert read_timing(tmp_path, "sweep", gpu) is None  # the same sweep, on another device
    keep_timing(tmp_path, "sweep", replace(timing, policy=policy_key(gpu), step=0.1))
    assert read_timing(tmp_path, "sweep", cpu) == timing


def test_a_timing_holds_for_the_same_policy_device_threads_and_engine_alone(tmp_path: Path) -> None:
    def of(engine: str = "transformers", dtype: str = "bfloat16", **training: object) -> ExperimentConfig:
        content = {
            "policy": {"kind": "pretrained", "name": "m", "dtype": dtype},
            "rollout": {"engine": {"kind": engine}},
            "training": {"device": "cuda", **training},
        }
        return ExperimentConfig.model_validate({**experiment().model_dump(), "warm_start": None, **content})

    kinds = [of(), of("continuous"), of(device="cpu"), of(threads=2), of(dtype="float32")]
    keep_timing(tmp_path, "study-0123ab", replace(TIMING, policy=policy_key(kinds[0])))
    assert [known_timing(tmp_path, "study", kind) is not None for kind in kinds] == [True, False, False, False, False]
    assert known_timing(tmp_path, "study", of(memory_share=0.5, epochs=9)) is not None


@pytest.mark.parametrize(
    ("rollout", "near"),
    [
        ({}, True),
        ({"questions": 8}, True),  # 128 rollouts, as timed
        ({"questions": 2}, True),  # 32, a fourth
        ({"questions": 1}, False),
        ({"questions": 33}, False),  # 528, more than four times as many
        ({"max_turns": 12}, True),
        ({"max_turns": 13}, False),
        ({"max_turns": 2}, False),  # a third of the tokens
        ({"max_tokens": 256}, True),
        ({"max_tokens": 255}, False),
    ],
)
def test_a_timing_holds_for_steps_of_about_the_same_size_alone(
    tmp_path: Path, rollout: dict[str, int], near: bool
) -> None:
    asked = ExperimentConfig.model_validate({**experiment().model_dump(), "rollout": {"group_size": 16, **rollout}})
    keep_timing(tmp_path, "study-0123ab", replace(TIMING, policy=policy_key(asked)))
    assert (known_timing(tmp_path, "study", asked) is not None) is near


def test_a_study_that_was_never_timed_borrows_from_one_with_the_same_policy(tmp_path: Path) -> None:
    same = replace(TIMING, policy=policy_key(experiment()))
    assert known_timing(tmp_path, "study", experiment()) is None
    keep_timing(tmp_path, "other-0123ab", replace(same, step=1.0))
    keep_timing(tmp_path, "third-0123ab", replace(TIMING, policy="another"))
    assert known_timing(tmp_path, "study", experiment()) == replace(same, step=1.0)
    keep_timing(tmp_path, "study-0123ab", replace(TIMING, policy="another"))  # its own, of another policy
    assert known_timing(tmp_path, "study", experiment()) == replace(same, step=1.0)
    keep_timing(tmp_path, "study-0123ab", replace(same, step=2.0, warm_start=None))  # its own of the same comes first
    keep_timing(tmp_path, "study-arms-0123ab", same)  # another study, whose name begins alike
    assert known_timing(tmp_path, "study", experiment()) == replace(same, step=2.0, warm_start=None)
    keep_timing(tmp_path, "study-4567cd", replace(same, step=3.0))  # one that timed a warm start comes first
    assert known_timing(tmp_path, "study", experiment()) == replace(same, step=3.0)


def test_a_warm_start_takes_as_long_as_what_it_is_taught() -> None:
    stage = {"steps": 50, "batch_size": 32, "learning_rate": 1e-3, "demonstrations": {"kind": "lookup"}}
    taught = ExperimentConfig.model_validate({"warm_start": {"stages": [stage, stage]}})  # 3200 demonstrations
    assert warm_start_seconds(taught, replace(TIMING, demonstrations=6400)) == pytest.approx(4 + 50)
    assert warm_start_seconds(taught, TIMING) == pytest.approx(4 + 100)  # of before demonstrations were counted
    assert warm_start_seconds(taught, replace(TIMING, warm_start=None)) == 4


def test_a_step_that_was_not_timed_is_counted() -> None:
    """One block of width 8 (4 x 64 of attention, 3 x 8 x 16 of the MLP: 640 weights) and a tied vocabulary of 100 (800). Two
    trajectories of 10 tokens, 4 of them sampled, outcome alone: a forward pass takes 2 x (10 x (2 x 640 + 2 x 10 x 2 x 4) +
    4 x 2 x 800) = 41,600 operations, the update three times that. Of the forward pass decoding makes 2 x 4 x (2 x 640 + 2 x 10 x
    2 x 4 + 2 x 800) = 24,320, for which it waits for bytes instead: 6 steps of one batch, 1.5 times the four, read 640 + 800
    weights each, and of two rows 5 columns of 2 x 2 x 4 numbers, all of 4 bytes."""
    config = ExperimentConfig.model_validate(
        {
            "reward": {"reward": "outcome_only"},
            "rollout": {"questions": 1, "group_size": 2, "max_turns": 2},
        }
    )
    shape = Shape(1, 8, 16, 2, 2, 4, 100, tied=True)
    found = count_timing(config, shape, Tokens(10, 4, 0, 0), Speed(1000.0, 500.0), 77)
    passes, decoding = REACHED["float32"].passes, REACHED["float32"].decoding
    sampling = (41_600 - 24_320) / 1000 / passes + 6 * 4 * (1440 + 2 * 5 * 16) / 500 / decoding
    assert found.step == pytest.approx(sampling + 3 * 41_600 / 1000 / passes)
    assert found.rollout == pytest.approx(sampling / 2) and found.rollouts == 2 and found.weights == 77
    assert found.warm_start is None and found.demonstrations == 0 and found.policy == policy_key(config)


def test_a_warm_start_that_was_not_timed_is_counted() -> None:
    """A forward pass over one demonstration of 20 tokens, of which 4 are taught, and twice that on the way back: 3 x (20 x (2 x
    640 + 2 x 20 x 2 x 4) + 4 x 2 x 800) = 115,200 operations; 3 x 5 demonstrations. Checkpointing is the update's alone."""
    stage = {"steps": 3, "batch_size": 5, "learning_rate": 1e-3, "demonstrations": {"kind": "lookup"}}
    checkpointing = OptimizerConfig(gradient_checkpointing=True, updates_per_step=2)
    config = experiment().model_copy(
        update={"warm_start": WarmStart.model_validate({"stages": [stage]}), "optimizer": checkpointing}
    )
    shape = Shape(1, 8, 16, 2, 2, 4, 100, tied=True)
    found = count_timing(config, shape, Tokens(20, 4, 2, 20), Speed(1e6, 1e30), 77)
    learning = 15 * 115_200 / 1e6 / REACHED["float32"].passes
    assert found.warm_start == pytest.approx(learning) and found.demonstrations == 15
    assert warm_start_seconds(config, found) == pytest.approx(4 + learning)


def test_a_step_and_a_warm_start_on_a_gpu_are_counted_from_its_data_sheet() -> None:
    """The block and the two trajectories of test_a_step_that_was_not_timed, in bfloat16: a forward pass of 41,600 operations, of
    which decoding makes 24,320. It reads 6 times 640 + 800 weights and 2 x 5 x 16 numbers, of 2 bytes: 19,200 bytes. The packed
    update moves its bytes for each of 2 x 10 tokens, one layer and 8 numbers. A demonstration of 20 tokens takes 115,200
    operations, as in the test above, is padded, and has its texts encoded as two turns; there are 15."""
    stage = {"steps": 3, "batch_size": 5, "learning_rate": 1e-3, "demonstrations": {"kind": "files"}}
    config = ExperimentConfig.model_validate(
        {
            "data": {"kind": "files", "questions": [{"path": "q"}], "corpus": ["c"]},
            "policy": {"kind": "pretrained", "name": "m", "dtype": "bfloat16"},
            "reward": {"reward": "outcome_only"},
            "rollout": {"questions": 1, "group_size": 2, "max_turns": 2},
            "optimizer": {"gradient_checkpointing": False},
            "training": {"device": "cuda"},
            "warm_start": {"stages": [stage]},
        }
    )
    shape = Shape(1, 8, 16, 2, 2, 4, 100, tied=True)
    found = count_gpu_timing(config, shape, Tokens(10, 4, 0, 20), Speed(1e6, 1e6), 77)
    # reading takes 38 ms, the products of decoding 47, and its kernels' starts 8
    sampling = 41_600 / 1e6 / PASSES_REACH + 2 * 2 * TURN_TAKES
    assert found.rollouts == 2 and found.rollout == pytest.approx(sampling / 2)
    update = 3 * 41_600 / 1e6 / PASSES_REACH + 2 * 10 * 8 * MOVED_PACKED / 1e6
    assert found.step == pytest.approx(sampling + update)
    lesson = 115_200 / 1e6 / PASSES_REACH + 20 * 8 * MOVED_PADDED / 1e6 + 2 * TURN_TAKES
    assert found.warm_start == pytest.approx(15 * lesson) and found.demonstrations == 15 and found.weights == 77
    # where bytes are slow decoding waits for them, on a fast card for its kernels
    slow = count_gpu_timing(config, shape, Tokens(10, 4, 0, 20), Speed(1e30, 1e6), 77)
    assert slow.rollout == pytest.approx((19_200 / 1e6 / DECODING_REACHES + 2 * 2 * TURN_TAKES) / 2)
    fast = count_gpu_timing(config, shape, Tokens(10, 4, 0, 20), Speed(1e30, 1e30), 77)
    assert fast.step == pytest.approx(6 * LAYER_STARTS["transformers"] + 2 * 2 * TURN_TAKES)


def test_the_speed_of_this_machine_is_that_of_a_machine() -> None:
    for dtype in ("float32", "bfloat16"):
        speed = measure_speed(1, dtype)
        assert 1e8 < speed.operations < 1e13 and 1e8 < speed.bandwidth < 1e12
