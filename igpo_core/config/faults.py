"""What can be wrong with the arms of a comparison, told before anything runs: names, roles, and what an arm may set at all."""

import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from igpo_core.config.reasons import nearest, reasons
from igpo_core.config.reward import ARM_FIELDS, KINDS, OF_ALL_ARMS, RENAMED, kind_of

# an arm's name is part of MLflow's metric names, of files and of lists with commas
ARM = r"\w[\w.-]{0,63}"
ARM_RULE = "name an arm with at most 64 letters, digits and . - _ alone, a letter, digit or _ first: MLflow refuses other names"
# of an arm, besides what is in `reward`: what makes the base optimiser another one at the same cost
OF_OPTIMIZER = ("denominator", "dead_groups", "ratio", "clip_low", "clip_high", "dual_clip")


def cut(name: str) -> str:
    """Return a name as it is shown: short, and without characters that a terminal obeys."""
    return ascii(name if len(name) <= 80 else name[:79] + "…")


def faults_of_arms(arms: Mapping[str, Mapping[str, Any]], baseline: str | None, primary: str | None) -> list[str]:
    """Every wrong name and value in the arms, whatever the base is."""
    no_text = [f"arm {arm!r} is no text to YAML, which reads no, 1 and 0.5 otherwise: put its name in quotes"
               for arm in arms if not isinstance(arm, str)]  # fmt: skip
    no_text += [f"arm {arm!r} sets {name!r}, which is no text to YAML: settings have the names that docs/arms.md lists"
                for arm, changes in arms.items() for name in changes if not isinstance(name, str)]  # fmt: skip
    if no_text:
        return no_text
    faults = [f"arm {cut(arm)}: {ARM_RULE}" for arm in arms if not re.fullmatch(ARM, arm)]
    for role, arm in (("baseline", baseline), ("primary", primary)):
        if arm is not None and arm not in arms:
            faults.append(f"{role} {arm!r} is no arm{nearest(arm, arms)}; arms are {', '.join(arms)}")
    if primary is not None and primary == baseline:
        faults.append(f"primary {primary!r} is the baseline: name the arm that is compared with it")
    known = {*ARM_FIELDS, *RENAMED, "optimizer", "replicate"}
    for arm, changes in arms.items():
        shared = [name for name in OF_ALL_ARMS if name in changes]
        if shared:
            faults.append(
                f"arm {arm!r} sets {', '.join(shared)}: the format penalty is the same for all arms of a comparison. Set "
                f"reward.{shared[0]} in `base`, or as a factor"
            )
        foreign = [f"{name}{nearest(name, known)}" for name in sorted({*changes} - known)]
        of_optimizer = changes.get("optimizer", {})
        if not isinstance(of_optimizer, dict):
            faults.append(f"arm {arm!r}: optimizer is {type(of_optimizer).__name__}, not settings with their values")
            of_optimizer = {}
        foreign += [
            f"optimizer.{name}{nearest(str(name), OF_OPTIMIZER)}" for name in of_optimizer if name not in OF_OPTIMIZER
        ]
        if foreign:
            faults.append(
                f"arm {arm!r} sets {', '.join(foreign)}: an arm changes the learning signal alone "
                f"({', '.join(ARM_FIELDS)}; optimizer: {', '.join(OF_OPTIMIZER)}; replicate); anything else would "
                "confound the comparison and belongs into `base`, for all arms, or into `factors`, where it is what is studied"
            )
        faults += [f"arm {arm!r}: {reason}" for reason in faults_of_reward(changes)]
    return faults


def faults_of_reward(changes: Mapping[str, Any]) -> list[str]:
    """What is wrong with single settings of an arm. Rules over several of them wait for those of the base."""
    kind = kind_of(changes) or ""
    if kind not in KINDS:
        return [
            f"reward is {changes['reward']!r}{nearest(str(changes['reward']), KINDS)}: it is one of {', '.join(KINDS)}"
        ]
    given = {name: value for name, value in changes.items() if name in ARM_FIELDS or name in RENAMED}
    try:
        KINDS[kind].model_validate(given)
    except ValidationError as error:
        told = zip(error.errors(), reasons(error, KINDS[kind]), strict=True)
        of_names = ("another place now", f"reward={kind} ignores")
        return [reason for fault, reason in told if fault["loc"] or any(words in reason for words in of_names)]
    return []
