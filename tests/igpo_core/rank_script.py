"""What each of several processes does in test_ranks.py: python rank_script.py FOLDER, under torch's elastic launcher or alone."""

import copy
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from igpo_core.config import ExperimentConfig
from igpo_core.data import to_questions
from igpo_core.environments import lookup
from igpo_core.environments.lookup import LookupEnvironment
from igpo_core.evaluation import evaluate
from igpo_core.policies import load_policy
from igpo_core.training import Trainer


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    for name, content in json.loads((folder / "arms.json").read_text()).items():
        config = ExperimentConfig.model_validate(content)
        assert config.data.kind == "lookup"
        environment = LookupEnvironment(
            config.data, to_questions(lookup.generate(config.data)), config.rollout.max_turns
        )
        policy = copy.deepcopy(load_policy(folder / "start", config))
        trainer = Trainer(config, environment, policy)
        steps = [trainer.run_step()]
        gradients = {n: p.grad.detach().clone() for n, p in policy.model.named_parameters() if p.grad is not None}
        steps.append(trainer.run_step())
        dev = evaluate(
            policy, environment, config, split="dev", limit=7, decoding="sampled", step=2, ranks=trainer.ranks
        )
        out = folder / f"{name}-{trainer.ranks.count}"
        trainer.save(out)
        if trainer.ranks.first:
            save_file(gradients, folder / f"{name}-{trainer.ranks.count}.safetensors")
            found = {
                "tokens": [[item.trajectory.token_ids for item in step.scored] for step in steps],
                "groups": [[item.trajectory.group for item in step.scored] for step in steps],
                "advantages": [step.credit.turns for step in steps],
                "metrics": [
                    {k: v for k, v in s.metrics.items() if "time/" not in k and "seconds" not in k} for s in steps
                ],
                "dev": [record["answer"] for record in dev.records],
            }
            (folder / f"{name}-{trainer.ranks.count}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
