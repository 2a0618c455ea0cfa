"""What each of several processes does in test_ranks.py, with others or alone:

python rank_script.py FOLDER         each arm: two steps, an evaluation, a checkpoint, and a third step
python rank_script.py FOLDER again   alone: a third step from the checkpoints that two processes left
"""

import copy
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from igpo_core.config import ExperimentConfig, PretrainedPolicy
from igpo_core.data import to_questions
from igpo_core.environments import lookup
from igpo_core.environments.lookup import LookupEnvironment
from igpo_core.evaluation import evaluate
from igpo_core.policies import load_policy
from igpo_core.training import StepResult, Trainer

WORLD = int(os.environ.get("WORLD_SIZE", "1"))


def metrics(step: StepResult) -> dict[str, float]:
    return {k: v for k, v in step.metrics.items() if "time/" not in k and "seconds" not in k}


def whole(tensor: Any) -> torch.Tensor:
    found: torch.Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return found.detach().clone()


def groups_of(model: Any) -> set[Any]:
    """The process groups that weights and everything else go through."""
    meshes = [p.device_mesh for p in model.parameters() if isinstance(p, DTensor)]
    return {torch.distributed.group.WORLD, *(mesh.get_group() for mesh in meshes)}


def patience(group: Any) -> float:
    """Seconds that a process waits for the others."""
    found: float = group._get_backend(torch.device("cpu")).options._timeout.total_seconds()
    return found


def main(folder: Path, again: bool) -> None:
    torch.set_num_threads(1)
    for name, content in json.loads((folder / "arms.json").read_text()).items():
        sharding = content["training"]["sharding"] if WORLD > 1 else "none"
        content["training"] |= {"processes": WORLD, "sharding": sharding}
        config = ExperimentConfig.model_validate(content)
        assert config.data.kind == "lookup"
        environment = LookupEnvironment(
            config.data, to_questions(lookup.generate(config.data)), config.rollout.max_turns
        )
        pretrained = isinstance(config.policy, PretrainedPolicy)
        start = load_policy(config.policy.name if pretrained else folder / "start", config)
        own, other = folder / f"{name}-{WORLD}", folder / f"{name}-{2 if again else 1}"
        if WORLD > 1 or again:  # go on from what another number of processes left
            trainer = Trainer(config, environment, copy.deepcopy(start))
            trainer.restore(other)
            third = trainer.run_step()
            if trainer.ranks.is_main:
                place = folder / f"{name}-third{'-again' if again else ''}.json"
                place.write_text(json.dumps(metrics(third)))
            if again:
                continue
        policy = copy.deepcopy(start)
        trainer = Trainer(config, environment, policy)
        steps = [trainer.run_step()]
        gradients = {n: whole(p.grad) for n, p in policy.model.named_parameters() if p.grad is not None}
        steps.append(trainer.run_step())
        with trainer.whole_weights():
            dev = evaluate(
                policy, environment, config, split="dev", limit=7, decoding="sampled", step=2, ranks=trainer.ranks
            )
        trainer.save(own)
        steps.append(trainer.run_step())
        if trainer.ranks.is_main:
            save_file(gradients, own.with_suffix(".safetensors"))
            found = {
                "tokens": [[item.trajectory.token_ids for item in step.scored] for step in steps],
                "groups": [[item.trajectory.group for item in step.scored] for step in steps],
                "advantages": [step.credit.turns for step in steps],
                "metrics": [metrics(step) for step in steps],
                "dev": [record["answer"] for record in dev.records],
                "patience": [patience(group) for group in groups_of(policy.model)] if WORLD > 1 else [],
            }
            own.with_suffix(".json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), "again" in sys.argv)
    os._exit(
        0
    )  # as the product's processes end: torch's threads of a group whose other side is gone may abort a plain exit
