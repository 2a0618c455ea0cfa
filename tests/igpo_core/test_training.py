"""One step of training: what has a gradient, what costs a pass, and that a resumed run is the same run."""

import copy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from igpo_core.config import ExperimentConfig
from igpo_core.environments.searching import SEARCH
from igpo_core.errors import CheckpointError, IgpoError
from igpo_core.policies import Policy, load_policy, make_policy, new_model, save_policy
from igpo_core.ranks import Ranks
from igpo_core.rewards.scoring import answer_probes
from igpo_core.rollout.transformers_engine import rollout
from igpo_core.sampled import sampled_logprobs
from igpo_core.training import Trainer
from igpo_core.trajectory import Trajectory


def fresh_copy(setup: Any) -> Policy:
    """A fresh copy of the taught policy."""
    _, _, policy = setup
    return Policy(copy.deepcopy(policy.model), policy.protocol, policy.window)


def configure(setup: Any, **parts: dict) -> ExperimentConfig:
    config: ExperimentConfig = setup[0]
    return ExperimentConfig.model_validate(
        {**config.model_dump(), **{k: ({} if k == "reward" else config.model_dump()[k]) | v for k, v in parts.items()}}
    )


@pytest.fixture(scope="module")
def trajectories(taught: Any) -> list[Trajectory]:
    config, environment, _ = taught
    drawn = rollout(
        fresh_copy(taught), environment, environment.tasks("train")[:4], config.rollout, members=6, key=(0, "t", 0)
    )
    assert sum(len(item.turns) > 1 for item in drawn) >= 6 and len({item.status for item in drawn}) >= 2
    return drawn


def test_outcome_only_makes_no_scoring_pass(taught: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No probe is rendered, none rides, and rewarding makes no pass of its own."""
    passes: list[int] = []
    columns: list[int] = []
    for reward in ("outcome_only", "outcome_and_gain"):
        policy = fresh_copy(taught)
        config = configure(taught, reward={"reward": reward})
        trainer = Trainer(config, taught[1], policy)

        def count(_: Any, arguments: Any, keywords: dict[str, Any]) -> None:
            if torch.is_grad_enabled():  # the update's own passes
                return
            passes[-1] += 1
            columns[-1] += keywords["input_ids"].shape[1]

        passes.append(0)
        columns.append(0)
        policy.model.get_decoder().register_forward_pre_hook(count, with_kwargs=True)
        result = trainer.run_step()
        assert (result.metrics["time/scoring"] == 0.0) == (reward == "outcome_only")
        assert all((item.beliefs is None) == (reward == "outcome_only") for item in result.scored)
    assert passes[0] == passes[1]  # the gain costs no pass either, only columns
    assert 0 < columns[0] < columns[1]


def test_outcome_only_ignores_the_gain_in_a_whole_step(taught: Any) -> None:
    """Two steps differ by the reward alone: same rollouts, and only outcome_only's advantages are equal over turns."""
    results = {}
    penalty = {
        "outcome_only": {"penalty_on": "trajectory"},
        "gain_only": {},
    }  # charged to a turn it would differ by turns
    for reward in ("outcome_only", "gain_only"):
        config = configure(taught, reward={"reward": reward, **penalty[reward]})
        results[reward] = Trainer(config, taught[1], fresh_copy(taught)).run_step()
    one, other = (results[name].scored for name in ("outcome_only", "gain_only"))
    assert [a.trajectory.token_ids for a in one] == [b.trajectory.token_ids for b in other]
    assert all(len(set(row)) == 1 for row in results["outcome_only"].credit.turns)
    assert any(len(set(row)) > 1 for row in results["gain_only"].credit.turns)


def test_gradients_reach_only_places_that_predict_a_sampled_token(taught: Any, trajectories: list[Trajectory]) -> None:
    policy = fresh_copy(taught)
    outputs: list[torch.Tensor] = []

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        output.last_hidden_state.retain_grad()
        outputs.append(output.last_hidden_state)

    policy.model.get_decoder().register_forward_hook(keep)
    logprobs, _ = sampled_logprobs(policy.model, trajectories, policy.protocol.pad_id, 1.0)
    logprobs.sum().backward()
    assert outputs[0].grad is not None
    touched = {(int(i), int(k)) for i, k in outputs[0].grad.abs().sum(-1).nonzero()}
    expected = {
        (i, k - 1) for i, item in enumerate(trajectories) for turn in item.turns for k in range(turn.start, turn.end)
    }
    assert touched == expected
    observed = {
        (i, k - 1) for i, item in enumerate(trajectories) for turn in item.turns
        for k in range(turn.end, turn.observation_end)
    }  # fmt: skip
    assert observed and not touched & observed


def test_the_ratio_is_one_before_the_first_update(taught: Any) -> None:
    result = Trainer(taught[0], taught[1], fresh_copy(taught)).run_step()
    assert result.metrics["train/ratio_error"] < 1e-5
    assert result.metrics["train/clip_share"] == 0.0
    assert result.metrics["train/grad_norm"] > 0


def test_the_update_equals_the_loss_written_out(taught: Any, trajectories: list[Trajectory]) -> None:
    """Micro-batches, skipped trajectories and weights against -1/N sum_i 1/|o_i| sum_t A log pi, on all at once."""
    advantages = [[0.5 * k - 1.0 for k, _ in enumerate(item.turns)] for item in trajectories]
    advantages[0] = [0.0] * len(advantages[0])  # a trajectory without any advantage costs no pass but counts in N
    policy = fresh_copy(taught)
    logprobs, _ = sampled_logprobs(policy.model, trajectories, 0, 1.0)
    factors = [
        a / (len(trajectories) * item.sampled_tokens)
        for item, row in zip(trajectories, advantages, strict=True)
        for turn, a in zip(item.turns, row, strict=True)
        for _ in turn.logprobs
    ]
    (-(torch.tensor(factors) * logprobs).sum()).backward()
    expected = [p.grad.clone() for p in policy.model.parameters()]
    for budget in (1, 150, 100_000):
        config = configure(taught, optimizer={"tokens_per_batch": budget, "max_grad_norm": 1e9})
        fresh = fresh_copy(taught)
        trainer = Trainer(config, taught[1], fresh)
        trainer.learner.update(trajectories, advantages, step=0)
        for parameter, reference in zip(fresh.model.parameters(), expected, strict=True):
            assert parameter.grad is not None
            assert torch.allclose(parameter.grad, reference, atol=1e-6)


def test_kl_is_to_the_start_of_the_run(taught: Any) -> None:
    config = configure(taught, optimizer={"kl_coefficient": 0.1, "learning_rate": 1e-2})
    trainer = Trainer(config, taught[1], fresh_copy(taught))
    assert trainer.run_step().metrics["train/kl"] == pytest.approx(0.0, abs=1e-6)
    assert trainer.run_step().metrics["train/kl"] > 1e-5


def weights_of(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in policy.model.state_dict().items()}


def test_a_resumed_run_is_the_same_run_to_the_bit(taught: Any, tmp_path: Path) -> None:
    config, environment, _ = taught
    undisturbed = fresh_copy(taught)
    trainer = Trainer(config, environment, undisturbed)
    metrics = [trainer.run_step().metrics for _ in range(4)]
    halted = Trainer(config, environment, fresh_copy(taught))
    for _ in range(2):
        halted.run_step()
    halted.save(tmp_path / "step-000002")
    torch.rand(7)  # whatever else drew random numbers in between
    resumed_policy = fresh_copy(taught)
    resumed = Trainer(config, environment, resumed_policy)
    resumed.restore(tmp_path / "step-000002")
    assert resumed.step == 2
    again = [resumed.run_step().metrics for _ in range(2)]
    timeless, resumed_timeless = (
        [{k: v for k, v in row.items() if "time/" not in k and "seconds" not in k} for row in rows]
        for rows in (metrics[2:], again)
    )
    assert resumed_timeless == timeless
    for name, tensor in weights_of(undisturbed).items():
        assert torch.equal(tensor, resumed_policy.model.state_dict()[name]), name


def test_questions_come_in_permutations(taught: Any) -> None:
    trainer = Trainer(taught[0], taught[1], fresh_copy(taught))
    places = [question.id for step in range(40) for question in trainer.sampler.questions_of(step)]
    assert sorted(places[:40]) == sorted(question.id for question in taught[1].tasks("train"))
    assert sorted(places[40:80]) == sorted(places[:40]) and places[40:80] != places[:40]


def test_a_broken_model_stops_with_the_step(taught: Any) -> None:
    policy = fresh_copy(taught)
    trainer = Trainer(configure(taught, reward={"reward": "outcome_only"}), taught[1], policy)
    drawn = trainer.run_step().scored
    with torch.no_grad():
        policy.model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(IgpoError, match=r"step 2: the loss or the gradient is not finite"):
        rows = [[1.0] * len(item.trajectory.turns) for item in drawn]
        trainer.learner.update([item.trajectory for item in drawn], rows, step=1)


# ------------------------------------------------------------------------------------------------------ checkpoints


@pytest.fixture
def checkpoint(taught: Any, tmp_path: Path) -> Path:
    trainer = Trainer(taught[0], taught[1], fresh_copy(taught))
    trainer.run_step()
    trainer.save(tmp_path / "checkpoints" / "step-000001")
    return tmp_path / "checkpoints" / "step-000001"


def restore(setup: Any, folder: Path, config: ExperimentConfig | None = None) -> Trainer:
    trainer = Trainer(config or setup[0], setup[1], fresh_copy(setup))
    trainer.restore(folder)
    return trainer


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "remove"])
@pytest.mark.parametrize("name", ["model.safetensors", "state.pt", "config.json"])
def test_a_damaged_file_is_named(taught: Any, checkpoint: Path, damage: str, name: str) -> None:
    path = checkpoint / name
    content = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    else:
        content[len(content) // 2] ^= 1
        kept = {"truncate": content[: len(content) // 2], "flip": content, "empty": b""}[damage]
        path.write_bytes(bytes(kept))
    with pytest.raises(CheckpointError, match=name):
        restore(taught, checkpoint)


def test_a_folder_without_its_manifest_is_no_checkpoint(taught: Any, checkpoint: Path) -> None:
    (checkpoint / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        restore(taught, checkpoint)


def test_moments_saved_on_another_device_are_read_where_this_one_is(
    taught: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch.save tags a tensor with its device; loaded without map_location it wants that very device again."""
    trainer = Trainer(taught[0], taught[1], fresh_copy(taught))
    trainer.run_step()
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        trainer.save(tmp_path / "step-000001")
    resumed = restore(taught, tmp_path / "step-000001")
    assert resumed.run_step().metrics["train/loss"] == trainer.run_step().metrics["train/loss"]


def test_a_budget_of_seconds_goes_by_the_first_processs_clock(taught: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that was slower than the first would stop a step earlier, and the first wait for it for ever."""
    content = taught[0].model_dump()
    content["training"] |= {"budget": "seconds", "amount": 1e6}
    trainer = Trainer(ExperimentConfig.model_validate(content), taught[1], fresh_copy(taught))
    firsts = {float: 2e6}
    monkeypatch.setattr(Ranks, "broadcast", lambda self, value: firsts.get(type(value), value))
    trainer.run_step()
    assert trainer.counters["seconds"] == 2e6 and trainer.done


def test_another_architecture_is_refused(taught: Any, checkpoint: Path) -> None:
    config, environment, policy = taught
    shape = config.policy.model_copy(update={"width": 64})
    tokenizer = policy.protocol.tokenizer
    other = make_policy(new_model(shape, len(tokenizer), tokenizer, 0), tokenizer, SEARCH)
    trainer = Trainer(config, environment, other)
    with pytest.raises(CheckpointError, match=r"another architecture.*\(\d+, 32\) in the checkpoint"):
        trainer.restore(checkpoint)


def test_a_checkpoint_of_another_configuration_is_refused(taught: Any, checkpoint: Path) -> None:
    config, environment, _ = taught
    other = config.model_copy(update={"seed": config.seed + 1})
    with pytest.raises(CheckpointError, match="another configuration"):
        Trainer(other, environment, fresh_copy(taught)).restore(checkpoint)


def test_weights_are_whole_except_while_an_update_is_applied(taught: Any) -> None:
    """Told to end in the middle of a step, a run may save what it has; in the middle of the update it may not."""
    config, environment, _ = taught
    trainer = Trainer(config, environment, fresh_copy(taught))
    seen = []
    step, clip = trainer.learner.optimizer.step, trainer.learner.accelerator.clip_grad_norm_
    trainer.learner.accelerator.clip_grad_norm_ = lambda *a: (seen.append(trainer.whole), clip(*a))[1]
    trainer.learner.optimizer.step = lambda *a: (seen.append(trainer.whole), step(*a))[1]
    trainer.run_step()
    assert seen == [True, False] and trainer.whole and trainer.step == 1


def test_a_failing_write_leaves_nothing_under_the_name(taught: Any, tmp_path: Path) -> None:
    from igpo_core.checkpoints import newest_checkpoint, write_folder

    def fill(path: Path) -> None:
        (path / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match="No space left on device"):
        write_folder(tmp_path / "checkpoints" / "step-000003", fill)
    assert list((tmp_path / "checkpoints").iterdir()) == []
    assert newest_checkpoint(tmp_path, pytest.fail) is None


def test_a_full_disk_is_named_and_leaves_nothing(taught: Any, tmp_path: Path) -> None:
    """A real one: files may not grow beyond 8 KiB, which the weights do; safetensors has an error class of its own."""
    save_policy(fresh_copy(taught), tmp_path / "policy")
    code = (
        "import resource, signal, sys\nfrom pathlib import Path\nfrom igpo_core.checkpoints import write_folder\n"
        "from igpo_core.config import ExperimentConfig\nfrom igpo_core.policies import load_policy, save_policy\n"
        "policy = load_policy(sys.argv[1], ExperimentConfig(rollout={'max_tokens': 200}))\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))\n"
        "write_folder(Path(sys.argv[2]), lambda path: save_policy(policy, path))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "policy"), str(tmp_path / "out" / "step")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).resolve().parents[2], check=False)
    assert done.returncode == 1 and "CheckpointError: cannot write" in done.stderr, done.stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_the_newest_whole_checkpoint_is_found(taught: Any, checkpoint: Path) -> None:
    from igpo_core.checkpoints import newest_checkpoint

    damaged = checkpoint.parent / "step-000002"
    shutil.copytree(checkpoint, damaged)
    (damaged / "state.pt").write_bytes(b"")
    said: list[str] = []
    assert newest_checkpoint(checkpoint.parent.parent, said.append) == checkpoint
    assert len(said) == 1 and "DAMAGED" in said[0] and "state.pt" in said[0]


def test_a_checkpoint_loads_as_a_policy(taught: Any, checkpoint: Path, tmp_path: Path) -> None:
    config, _, policy = taught
    loaded = load_policy(checkpoint, config)
    assert loaded.protocol.prompt("boss of F1 ?") == policy.protocol.prompt("boss of F1 ?")
    with pytest.raises(CheckpointError, match="nowhere"):
        load_policy(checkpoint / "nowhere", config)
    shutil.copytree(checkpoint, tmp_path / "cut")
    (tmp_path / "cut" / "model.safetensors").write_bytes(b"cut short")
    with pytest.raises(CheckpointError, match="cut"):
        load_policy(tmp_path / "cut", config)


@pytest.mark.parametrize("denominator", ["sequence", "token"])
def test_dropped_groups_are_in_no_term(taught: Any, trajectories: list[Trajectory], denominator: str) -> None:
    """One of four groups has advantages. KL to a start that the policy has left, and entropy, are of its tokens alone."""
    kept = trajectories[6:12]
    assert len({item.group for item in kept}) == 1 and len(trajectories) == 24
    advantages = [[0.5] * len(item.turns) if item in kept else [0.0] * len(item.turns) for item in trajectories]
    norms = []
    for asked, rows in ((trajectories, advantages), (kept, advantages[6:12])):
        config = configure(
            taught,
            optimizer={
                "denominator": denominator, "dead_groups": "drop", "kl_coefficient": 0.5, "entropy_coefficient": 0.1,
                "max_grad_norm": 1e9,
            },
        )  # fmt: skip
        trainer = Trainer(config, taught[1], fresh_copy(taught))
        with torch.no_grad():
            for parameter in trainer.policy.model.parameters():
                parameter.mul_(1.05)
        norms.append(trainer.learner.update(asked, rows, step=0))
    every, alone = norms
    assert alone["train/kl"] > 1e-3
    for name in ("train/kl", "train/grad_norm", "train/loss"):
        assert every[name] == pytest.approx(alone[name], rel=1e-3)


def test_a_step_without_a_live_group_has_no_term_where_they_are_dropped(
    taught: Any, trajectories: list[Trajectory]
) -> None:
    config = configure(taught, optimizer={"dead_groups": "drop", "kl_coefficient": 0.5, "entropy_coefficient": 0.1})
    trainer = Trainer(config, taught[1], fresh_copy(taught))
    found = trainer.learner.update(trajectories, [[0.0] * len(item.turns) for item in trajectories], step=0)
    assert found["train/grad_norm"] == found["train/kl"] == found["train/loss"] == 0.0


def test_the_ratio_of_further_updates_is_to_the_trainers_own_pass(taught: Any) -> None:
    """In bfloat16, with a learning rate that moves nothing and clips far narrower than bfloat16 rounds: no token is clipped,
    though the cache rounded otherwise than this pass does."""
    config = configure(
        taught,
        optimizer={
            "learning_rate": 1e-30,
            "updates_per_step": 2,
            "ratio": "sequence",
            "clip_low": 3e-6,
            "clip_high": 4e-6,
        },
    )
    for half in (True, False):
        fresh = fresh_copy(taught)
        result = Trainer(config, taught[1], Policy(fresh.model, fresh.protocol, fresh.window, half)).run_step()
        assert result.metrics["train/grad_norm"] > 0
        assert result.metrics["train/clip_share"] == result.metrics["train/ratio_error"] == 0.0


def test_loaded_weights_lie_and_compute_as_built_ones(taught: Any, tmp_path: Path) -> None:
    """A policy from a file, and one that was built and took the file's weights: aligned, and the same bits of few rows."""
    config, environment, policy = taught
    from igpo_core.checkpoints import load_weights
    from igpo_core.policies import build_policy

    save_policy(policy, tmp_path)
    loaded, built = load_policy(tmp_path, config), build_policy(config, environment)
    load_weights(tmp_path, built.model)
    for one in (loaded, built):
        assert {tensor.data_ptr() % 64 for tensor in (*one.model.parameters(), *one.model.buffers())} == {0}
    questions = environment.tasks("train")[:3]
    drawn = [
        rollout(
            one,
            environment,
            questions,
            config.rollout,
            members=2,
            key=(1, "t", 0),
            probes=answer_probes(one, environment, config.reward),
        )
        for one in (loaded, built)
    ]
    assert drawn[0] == drawn[1]  # log-probabilities and beliefs to the bit
