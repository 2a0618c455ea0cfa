"""What a preset would do, in seconds and without an accelerator: python -m tasks.runs.dry_run PRESET.

Loads the specification, checks keys, the address of a run on several machines and the rollout servers, publishes and validates
the data, calls a tool once, loads configuration and tokenizer of the policy, builds it without weights with its adapter,
renders a first batch and probes, and counts memory, disk and time: from steps of the same kind that were timed here before, else
on a processor from a product that is timed now, on accelerators from their makers' figures. What these would stop the run for
stops this. Not looked at: the weights themselves, this machine's accelerators but for their number and the name of the first,
other machines, MLflow and Prefect, whether a judge answers.
"""

import argparse
import json
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import psutil

from igpo_core.config import AblationSpecification, ExperimentConfig, PretrainedPolicy, VllmEngine
from igpo_core.environments import open_environment
from igpo_core.errors import IgpoError, NoNetwork
from igpo_core.rollout.serving import Connection
from tasks.lab.home import home, open_home
from tasks.lab.secrets import require_judge
from tasks.runs.cards import ACCELERATORS, card_here
from tasks.runs.devices import Spread
from tasks.runs.models import with_model
from tasks.runs.planned import Run
from tasks.runs.planning import (
    REACHED,
    Speed,
    Timing,
    Tokens,
    about_template,
    brief,
    count_gpu_timing,
    count_timing,
    disk,
    dtype_of,
    free_space,
    known_timing,
    measure_speed,
    run_seconds,
    speaks_for,
    spell,
    sweep_seconds,
    warm_start_seconds,
    with_questions_there,
)
from tasks.runs.taught import about_warm_start
from tasks.runs.together import meeting_address
from tasks.runs.work import (
    add_parts,
    announce,
    counted,
    missing_starts,
    seen,
    simultaneous,
    whole,
    write_minutes,
)
from tasks.specification.presets import resolve

if TYPE_CHECKING:
    from igpo_core.estimates import Shape
    from tasks.data.publishing import PublishedData
    from tasks.runs.described import Lengths

NAMED = 3  # quarantined rows of a rule that are named
PROCESS = 600 * 2**20  # bytes of a run's process before its model, as seen on Linux
# What a run on a CPU takes of memory for each byte that it holds at most: micro-batches of other lengths leave gaps in the C
# library's heap, and more of them as a run goes on. SmolLM2 took 8.3 to 9 GiB in the second step of two runs whose passes are
# real-laptop's, and at most 11.4 and 12.7 in forty (2026-11-28)
WITH_GAPS = 1.8


def dry_run(
    preset: str,
    changes: Mapping[str, Any] | None = None,
    processes: int | None = None,
    arms: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
) -> Iterator[str]:
    """Lines as they become known, the last one the verdict. Raises IgpoError where the run would (see module). processes: runs at
    the same time, in place of the preset's number; where no accelerator is here, on as many as they need. arms, seeds: only
    these."""
    from igpo_core.data import SPLITS  # pandas and torch take seconds: a wrong name is told before
    from igpo_core.rollout.rows import unsaid_answers
    from tasks.data.publishing import prepare
    from tasks.runs.described import describe, first_batch, usual_tokens

    specification = resolve(preset, changes, arms, seeds).specification
    spread = counted(specification, processes)
    yield announce(specification, spread.runs)
    every = [
        specification.experiment(arm, specification.seeds[0], specification.cells[0]) for arm in specification.arms
    ]
    costly = next((one for one in every if one.reward.needs_beliefs), every[0])
    require_judge(costly)
    if costly.training.device == "cuda" and not seen(costly.training):
        yield "warning: no accelerator is here, and training.device is cuda: this counts for a machine that has one"
    if costly.training.nodes > 1:
        meeting_address()
    try:
        data = prepare(costly.data, home())
    except NoNetwork as error:
        yield from needs_without_data(costly, spread.runs, error)
        raise
    counts = ", ".join(f"{count} {split}" for split, count in data.counts.items())
    yield f"data {data.version}: {counts}; {data.quarantined} rows quarantined"
    yield from quarantined(data)
    yield from (f"  warning: {line}" for line in (*data.warnings, *about_warm_start(costly, data.folder)))
    environment = open_environment(costly, data.folder)
    heard: list[str] = []
    costly = with_model(costly, home(), heard.append)
    yield from heard
    policy, shape = describe(costly, environment)
    yield from servers(costly, policy.protocol.prompt(environment.tasks("train")[0].text))
    yield f"policy: {_amount(shape.parameters)} parameters, a window of {policy.window} tokens" + _trained(
        costly, shape
    )
    yield from (f"  warning: {line}" for line in about_template(policy.protocol))
    lengths = first_batch(costly, environment, policy)
    yield (
        f"first batch: {costly.rollout.questions} questions x {costly.rollout.group_size} rollouts; prompts of {lengths.prompt} "
        f"tokens, an observation of {lengths.observation}, probes of at most {lengths.probe}; trajectories of at most "
        f"{lengths.trajectory} tokens"
    )
    questions = [question for split in SPLITS for question in environment.tasks(split)]
    unsaid = unsaid_answers(policy, environment, costly.rollout, questions)
    if unsaid:
        yield f"  warning: {unsaid}"
    fits = yield from needs(costly, shape, lengths, spread.runs)
    usual = usual_tokens(costly, environment, policy, lengths)
    yield from spent(specification, costly, shape, usual, spread, data.counts)
    write_minutes(home())
    yield "nothing of what was checked stands in the way of this run" + ("" if fits else ", but memory does")


def quarantined(data: "PublishedData") -> Iterator[str]:
    """What rows of each rule are left out, the first ones by name, and where all of them stand."""
    from tasks.data.publishing import QUARANTINE

    if not data.quarantined:
        return
    file = data.folder / QUARANTINE
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    for rule, count in data.quarantine_by_rule.items():
        own = [row for row in rows if f"{row['table']}: {row['rule']}" == rule]
        named = "; ".join(f"{row['id']} ({row['field']}: {row['found'] or row['value']})"[:200] for row in own[:NAMED])
        yield f"  left out, {rule}: {count} {'row' if count == 1 else 'rows'}: {named}{'; ..' if count > NAMED else ''}"
    yield f"  every one: {file}"


def servers(config: ExperimentConfig, prompt: Sequence[int]) -> Iterator[str]:
    """Each rollout server, asked once, and left to the run that may use it. Raises ServiceError where one does not answer or
    takes no weights, ConfigError where its log-probabilities are not those of rollout.temperature."""
    if not isinstance(config.rollout.engine, VllmEngine):
        return
    once = config.rollout.engine.model_copy(update={"attempts": 1})
    connection = Connection(once)
    for url in once.urls:
        name = connection.served_model(url)
        connection.require_dev_mode(url)
        if config.rollout.temperature != 1:
            connection.require_processed_logprobs(url, name, prompt)
        yield f"rollout server {url} answers with {name} and takes weights; what it needs itself is not counted below"


def spent(
    specification: AblationSpecification,
    costly: ExperimentConfig,
    shape: "Shape",
    usual: Tokens,
    spread: Spread,
    counts: Mapping[str, int],
) -> Iterator[str]:
    """Disk, and time, timed on this machine or counted, of all runs from nothing. counts: questions of each split of the data."""
    runs, starts = whole(specification)
    timing = known_timing(home(), specification.name, costly)
    weights = timing.weights if timing else trained_bytes(specification.base, shape)
    left, needed = (disk(len(runs), len(starts), weights, going) for going in (0, spread.runs))
    free = free_space(home())
    yield (
        f"disk: {len(runs)} runs and {len(starts)} warm starts leave about {left / 1e9:.1f} GB, and take at most "
        f"{needed / 1e9:.1f} GB while they are made; {free / 1e9:.0f} GB are free"
    )
    if needed > free:
        yield "  warning: the disk will be full before the sweep ends"
    training, dtype = costly.training, dtype_of(costly)
    if training.world > 1:
        yield "time: runs of several processes are neither timed nor counted as a whole"
        return
    # of cells with other data nothing was counted
    asked = [with_questions_there(run, counts if run.data == costly.data else None) for run in runs]

    def told(where: str, timing: Timing, how: str) -> str:
        others = sum(not speaks_for(timing, run) for run in runs)
        return (
            f"{where}: about {spell(sweep_seconds(asked, starts, timing, spread))} from nothing, {spread}: a warm "
            f"start about {spell(warm_start_seconds(starts[0], timing))}, a run about {spell(run_seconds(asked[0], timing))} "
            f"(a step of {timing.rollouts} rollouts {how.format(brief(timing.step))})"
            + (
                f"; {others} runs have another policy or steps of another size, and count as if theirs took as long"
                if others
                else ""
            )
        )

    if timing is not None:
        yield told("time on this machine", timing, "took {} s here")
    elif training.device == "cpu":
        speed = measure_speed(training.threads, dtype)
        how = (
            "{} s by its operations, of which "
            f"{REACHED[dtype].passes:.0%} of {speed.operations / 1e9:.0f} GFLOP/s in {dtype} are reached, as "
            f"{training.threads} threads were just seen to; the sweep times one after its first warm start"
        )
        yield told("time on this machine", count_timing(costly, shape, usual, speed, weights), how)
    else:
        card = card_here()
        served = ", without what rollout servers need" if isinstance(costly.rollout.engine, VllmEngine) else ""
        yield (
            f"time{served}, counted by how steps ran on an H100, where no whole run was timed (docs/scale.md); the sweep itself "
            "times a step after its first warm start"
        )
        for name in [card] if card else ACCELERATORS:
            _, in_half, in_single, bandwidth = ACCELERATORS[name]
            sheet = Speed(in_half if dtype == "bfloat16" else in_single, bandwidth)
            where = f"  on the {name} of this machine" if card else f"  {name}"
            yield told(where, count_gpu_timing(costly, shape, usual, sheet, weights), "{} s")
    busy, there = spread.runs * training.threads, psutil.cpu_count() or 1
    if training.device == "cpu" and busy > there:
        yield (
            f"  warning: {spread.runs} runs at a time of {training.threads} threads want {busy} processors, and this machine has "
            f"{there}: it takes longer"
        )


def trained_bytes(config: ExperimentConfig, shape: "Shape") -> int:
    """Bytes of what a run trains, in float32: all weights, or the adapter."""
    lora = config.policy.lora if isinstance(config.policy, PretrainedPolicy) else None
    return 4 * (shape.adapter(lora) if lora else shape.parameters)


def needed_disk(specification: AblationSpecification, runs: Sequence[Run]) -> int:
    """Return the most bytes that those of these runs that are not finished will take, with their warm starts.

    The weights are as large as in the last sweep of such a policy and steps of about this size, or counted where there was none.
    """
    from tasks.runs.described import describe

    left, base = [run for run in runs if not run.finished], specification.base
    timing = known_timing(home(), specification.name, base)
    if timing is not None:
        weights = timing.weights
    else:
        base = with_model(base, home(), print)
        weights = trained_bytes(base, describe(base, open_environment(base, left[0].data))[1])
    return disk(len(left), len(missing_starts(left)), weights, simultaneous(specification))


def on_a_cpu(held: int) -> float:
    """Return the bytes that the process of a run takes that holds so many at most."""
    return WITH_GAPS * held + PROCESS


def needs(config: ExperimentConfig, shape: "Shape", lengths: "Lengths", at_a_time: int) -> Generator[str, None, bool]:
    """Memory of a run, in this machine or on one accelerator: this machine's where it is a known one, else each that is; there
    also the seconds of a step, with trajectories as long as they may be. Returns whether it fits (one of them)."""
    from igpo_core.estimates import GIB, memory
    from igpo_core.step_costs import work

    held = memory(shape, config)
    parts = {
        "weights": held.weights, "gradients and moments": held.optimizer, "older weights": held.copies,
        "margin": held.margin, "rollout cache": held.cache, "weights whole or cast for rollouts": held.gathered,
        "a rollout's widest pass": held.passes, "or activations": held.activations,
        "with weights and gradients not spread": held.unsharded,
        "and what the rollout's engine keeps": held.kept, "or a warm start's activations and logits": held.taught,
    }  # fmt: skip
    listed = ", ".join(f"{name} {size / GIB:.2g}" for name, size in parts.items() if size)
    processes = config.training.world
    if config.training.device == "cpu":
        there, taken = psutil.virtual_memory().total, on_a_cpu(held.total)
        yield f"memory: {taken / GIB:.3g} GiB a run, {at_a_time} at a time; this machine has {there / GIB:.0f} GiB"
        return at_a_time * taken < there
    where = "all on one accelerator" if processes == 1 else f"on each of {processes} accelerators"
    yield f"memory, {where}: {held.total / GIB:.3g} GiB ({listed})"
    turns = config.rollout.max_turns
    sampled = min(turns * config.rollout.max_new_tokens, lengths.trajectory - lengths.prompt)
    step = work(shape, config, tokens=lengths.trajectory, sampled=sampled, probes=turns * lengths.probe)
    half = isinstance(config.policy, PretrainedPolicy) and config.policy.half
    card, share = card_here(), config.training.memory_share
    part, raised = (f" a share of {share:g}", "raise training.memory_share, or ") if share < 1 else ("", "")
    remedy = f"{raised}lower rollout.batch_size, optimizer.tokens_per_batch"
    some = False
    for name in [card] if card else ACCELERATORS:
        gib, in_half, in_single, bandwidth = ACCELERATORS[name]
        seconds = step.seconds(in_half if half else in_single, bandwidth)
        fits = held.total / GIB < gib * share
        some |= fits
        yield (
            f"  {name}{' of this machine' if card else ''}: {f'fits{part}' if fits else f'does not fit{part}: {remedy}'}; a step "
            f"of the longest trajectories takes about {brief(seconds)} s, by how steps ran on an H100 (docs/scale.md)"
        )
    if not some:
        yield f"  warning: it {'does not fit' if card else 'fits none of these accelerators'}"
    return some


def needs_without_data(config: ExperimentConfig, at_a_time: int, reason: NoNetwork) -> Iterator[str]:
    """Memory of a pretrained policy, for which the data that are out of reach are not needed: with trajectories as long as they
    may be. Raises NoNetwork with both reasons where the policy is out of reach, too."""
    from tasks.runs.described import Lengths, describe_pretrained

    if isinstance(config.policy, PretrainedPolicy):
        config = with_model(config, home(), print)
        assert isinstance(config.policy, PretrainedPolicy)
        try:
            _, shape = describe_pretrained(config, config.policy)
        except NoNetwork as error:
            raise NoNetwork(f"{reason}\n{error}") from error
        longest = config.rollout.max_tokens
        yield f"without the data, for trajectories of rollout.max_tokens={longest} tokens and probes of none:"
        yield from needs(config, shape, Lengths(0, 0, 0, longest), at_a_time)


def _trained(config: ExperimentConfig, shape: "Shape") -> str:
    lora = config.policy.lora if isinstance(config.policy, PretrainedPolicy) else None
    return f", of which an adapter of {_amount(shape.adapter(lora))} is trained" if lora else ""


def _amount(count: int) -> str:
    """1.54 billion, 313 thousand."""
    for size, unit in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)


def main(arguments: list[str]) -> int:
    """Print what a preset would do. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tasks.runs.dry_run", description=__doc__)
    parser.add_argument("preset")
    add_parts(parser)
    chosen = parser.parse_args(arguments)
    try:
        open_home()
        for line in dry_run(chosen.preset, dict(chosen.set), chosen.processes, chosen.arms, chosen.seeds):
            print(line)
    except IgpoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
