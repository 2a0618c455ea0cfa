"""A dry run says what would happen, and stops at what would stop the run."""

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from igpo_core.config import AblationSpecification
from igpo_core.errors import ConfigError, ServiceError
from igpo_core.estimates import Shape
from tasks.lab.home import home
from tasks.runs.cards import ACCELERATORS, card_here
from tasks.runs.dry_run import dry_run, main, spent
from tasks.runs.planning import Speed, Timing, Tokens, keep_timing, policy_key
from tasks.runs.processors import best_dtype
from tasks.runs.work import counted as counted_runs
from tasks.specification.presets import PRESETS, load_specification
from tests.igpo_core.hostile import hostile_server
from tests.tasks.tables import GOOD, files, lines, row, trajectory


@pytest.fixture(autouse=True)
def in_a_home_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IGPO_HOME", str(tmp_path / "home"))
    for name in ("SEARCH_API_KEY", "JUDGE_API_KEY"):
        monkeypatch.setenv(name, "hush")
    for module in ("cards", "work"):
        monkeypatch.setattr(f"tasks.runs.{module}.accelerators", list)


def changed(folder: Path, **base: Any) -> str:
    content = yaml.safe_load((PRESETS / "tiny.yaml").read_text())
    content["base"] |= base
    content["processes"] = 1
    (folder / "changed.yaml").write_text(yaml.safe_dump(content))
    return str(folder / "changed.yaml")


def test_a_preset_that_can_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tiny"]) == 0
    said = capsys.readouterr().out
    assert "2 arms" in said and "rows quarantined" in said and "first batch: 2 questions x 2 rollouts" in said
    assert "policy: 25.2 thousand parameters" in said
    assert "nothing of what was checked stands in the way of this run\n" in said
    # a preset for the processor: this machine's memory, no accelerator; no step was timed in this home, so that time is counted
    assert "this machine has" in said and "H100" not in said
    assert "4 runs and 2 warm starts leave about" in said
    assert "(a step of 4 rollouts" in said and "by its operations, of which 57% of" in said and "1 threads" in said
    assert "warning: 2 seeds carry no verdict, whatever they show: that takes 6 of them" in said


def test_rows_that_are_left_out_are_named_with_their_rule(tmp_path: Path) -> None:
    odd = [{**row(f"odd{number}", "train"), "answers": []} for number in range(5)]
    data = files(tmp_path, [*GOOD, *odd])
    preset = changed(
        tmp_path,
        data=data.model_dump(mode="json"),
        policy={"kind": "new", "tokenizer": "chat", "vocabulary": 320, "window": 2048},
        rollout={"max_turns": 3, "questions": 1, "group_size": 2, "max_tokens": 1536},
        warm_start=None,
    )
    said = list(dry_run(preset))
    place = next(number for number, line in enumerate(said) if "5 rows quarantined" in line)
    assert said[place + 1].startswith("  left out, questions: ") and ": 5 rows: odd0 (answers" in said[place + 1]
    assert "odd2" in said[place + 1] and "odd3" not in said[place + 1] and said[place + 1].endswith("; ..")
    file = Path(said[place + 2].removeprefix("  every one: "))
    assert len(file.read_text().splitlines()) == 5


def test_a_part_of_a_preset_is_counted_as_it_would_be_made(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tiny", "--arms", "outcome_only", "--seeds", "7"]) == 0
    said = capsys.readouterr().out
    assert "tiny: 1 arms (outcome_only) x 1 seeds = 1 runs" in said and "1 runs and 1 warm starts leave" in said
    assert main(["tiny", "--arms", "igpo_magic"]) == 1
    assert "unknown arm igpo_magic" in capsys.readouterr().err


def test_without_an_accelerator_it_counts_for_a_machine_that_has_one_and_says_so(tmp_path: Path) -> None:
    there, gone = (list(dry_run(changed(tmp_path, training={"device": device}))) for device in ("cpu", "cuda"))
    assert [any("no accelerator is here" in line for line in lines) for lines in (there, gone)] == [False, True]


def test_what_is_odd_about_trajectories_is_told(tmp_path: Path) -> None:
    """Two of three fit three turns; they are taught 10 x 32 times."""
    rows = [trajectory(f"t{number}", f"What is {number}?", turns=turns) for number, turns in enumerate((1, 2, 3))]
    data = files(tmp_path, GOOD, trajectories=[lines(tmp_path / "t.jsonl", rows)])
    stage = {"steps": 10, "learning_rate": 1e-3, "demonstrations": {"kind": "files", "use": "trajectories"}}
    preset = changed(
        tmp_path,
        data=data.model_dump(mode="json"),
        policy={"kind": "new", "tokenizer": "chat", "vocabulary": 320, "window": 2048},
        rollout={"max_turns": 3, "questions": 1, "group_size": 2, "max_tokens": 1536},
        warm_start={"stages": [{**stage, "batch_size": 32}]},
    )
    said = "\n".join(dry_run(preset))
    assert (
        "warning: 1 of 3 trajectories are left out of the warm start: they have more than rollout.max_turns=3" in said
    )
    assert "LEARNT BY HEART: 320 demonstrations are copies of 2 trajectories, 160 times each" in said


def timed_on_the_cpu(rollout: float = 0.01) -> None:
    timed(policy_key(load_specification("tiny").base), 0.5, rollout)


def timed(policy: str, step: float, rollout: float = 0.01) -> None:
    timing = Timing(
        step, rollouts=4, rollout=rollout, warm_start=10.0, weights=10**6, policy=policy, sampled=64, longest=256
    )
    keep_timing(home(), "tiny-0123ab", timing)


def test_the_time_on_this_machine_once_a_step_was_timed(capsys: pytest.CaptureFixture[str]) -> None:
    """A start of 4 s, 4 steps of .5 s, 5 x 16 dev and 3 x 16 test rollouts of .01 s: a run takes 7.28 s, a warm start 4 + 10;
    four and two of them, two at a time: 28.56 s."""
    timed_on_the_cpu()
    assert main(["tiny"]) == 0
    assert "time on this machine: about 29 s from nothing, 2 at a time" in capsys.readouterr().out
    known = (home() / "timings" / "presets.tsv").read_text().splitlines()
    assert "tiny\tabout 29 s" in known


def test_runs_at_a_time_are_as_many_as_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """tiny has `processes: 2`. Its four runs of 7.28 s and two warm starts of 14 s, four at a time: 57.12 / 4 = 14.28 s."""
    timed_on_the_cpu()
    monkeypatch.setattr("psutil.cpu_count", lambda: 3)
    assert main(["tiny", "--processes", "4"]) == 0
    said = capsys.readouterr().out
    assert "each 4 steps and 16 rollouts, 4 at a time; every arm" in said
    assert "GiB a run, 4 at a time; this machine has" in said
    assert (
        "time on this machine: about 14 s from nothing, 4 at a time: a warm start about 14 s, a run about 7 s" in said
    )
    assert "warning: 4 runs at a time of 1 threads want 4 processors, and this machine has 3: it takes longer" in said
    assert main(["tiny", "--processes", "1"]) == 0
    said = capsys.readouterr().out
    assert "GiB a run, 1 at a time" in said and "about 57 s from nothing, 1 at a time" in said and "want" not in said
    assert main(["tiny", "--processes", "64"]) == 0  # there are four runs
    said = capsys.readouterr().out
    assert said.count(", 4 at a time") == 3 and "64 at a time" not in said
    with pytest.raises(SystemExit):
        main(["tiny", "--processes", "65"])


SHAPE = Shape(1, 8, 16, 2, 2, 4, 100, tied=True)


def time_of(
    counts: dict[str, int] | None = None, workers: int = 1, factors: dict[str, Any] | None = None, **changes: Any
) -> list[str]:
    """What is said of the time of preset tiny, whose arms have four runs and two warm starts."""
    home().mkdir(exist_ok=True)
    plain = load_specification("tiny", changes)
    specification = AblationSpecification.model_validate({**plain.model_dump(), "factors": factors or {}})
    costly = specification.experiment("igpo", 0, specification.cells[0])
    spread = counted_runs(specification, workers)
    told = spent(specification, costly, SHAPE, Tokens(10, 4, 0, 20), spread, counts or {"dev": 16, "test": 16})
    return list(told)[1:]


def test_no_more_questions_are_counted_than_there_are() -> None:
    """4 + 4 x .5 s, and 1 s a question: 5 x 16 dev and 3 x 16 test ones take a run to 134 s, 5 x 5 and 3 x 7 to 52."""
    timed_on_the_cpu(rollout=1.0)
    assert "a run about 2 min" in time_of()[0]
    # four runs and two warm starts of 14 s: 236 s
    (line,) = time_of({"dev": 5, "test": 7})
    assert "about 4 min from nothing" in line and "a run about 52 s" in line


@pytest.mark.parametrize(("path", "own", "other"), [("rollout.max_turns", 4, 9), ("policy.width", 32, 1536)])
def test_runs_of_which_the_timed_step_says_nothing_are_told(path: str, own: int, other: int) -> None:
    """tiny samples 4 turns of 16 tokens; nine turns are more than twice as many. Two arms, two seeds, two cells."""
    timed_on_the_cpu()
    (line,) = time_of()
    assert "count as if" not in line
    (line,) = time_of(factors={"form": {"own": {path: own}, "other": {path: other}}})
    assert line.endswith("; 4 runs have another policy or steps of another size, and count as if theirs took as long")


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Speed]:
    """The data sheets that times are counted from: 15 minutes a step by the one of an H100 in float32, more by slower ones."""
    sheets: list[Speed] = []

    def count(experiment: Any, shape: Shape, tokens: Tokens, sheet: Speed, weights: int) -> Timing:
        assert shape == SHAPE and tokens == Tokens(10, 4, 0, 20)
        sheets.append(sheet)
        return Timing(
            900 * 67e12 / sheet.operations, 4, 0.01, 10.0, weights, policy_key(experiment), 480, sampled=64, longest=256
        )

    monkeypatch.setattr("tasks.runs.dry_run.count_gpu_timing", count)
    return sheets


def test_hours_on_every_card_of_the_table_where_none_is_here(counted: list[Speed]) -> None:
    """4 + 4 x 900 + 128 x .01 = 3605 s a run on an H100, and four of them with two warm starts of 14 s 14,449 s = 4.0 h. In
    float32 an L4 has 30 of its 67 TFLOP/s: 8045 s a run, 32,209 s = 8.9 h; an A100 19.5: 12,374 s, 49,523 s = 13.8 h."""
    first, *rows = time_of(**{"training.device": "cuda"})
    assert first.startswith("time, counted by how steps ran on an H100, where no whole run was timed")
    assert rows == [
        f"  {name}: about {whole} from nothing, 1 at a time: a warm start about 14 s, a run about {run} (a step of 4 rollouts "
        f"{step} s)"
        for name, whole, run, step in (
            ("L4 24 GB", "8.9 h", "2.2 h", "2010"),
            ("A100 80 GB PCIe", "13.8 h", "3.4 h", "3092"),
            ("A100 80 GB SXM", "13.8 h", "3.4 h", "3092"),
            ("H100 80 GB SXM", "4.0 h", "60 min", "900"),
            ("H200 141 GB SXM", "4.0 h", "60 min", "900"),
        )
    ]
    a100, hopper = (19.5e12, 1.94e12, 2.0e12), (67e12, 3.35e12, 4.8e12)
    assert counted == [Speed(30e12, 0.30e12)] + [Speed(kind[0], bytes) for kind in (a100, hopper) for bytes in kind[1:]]


def test_as_many_cards_as_are_asked_for_are_counted_where_none_is_here(counted: list[Speed]) -> None:
    """14,449 s on an H100, as above, on 4 cards: 3,612 s; where two runs share one, on 2 cards: 7,224 s."""
    row = time_of(workers=64, **{"training.device": "cuda"})[4]  # there are four runs
    assert row.startswith(
        "  H100 80 GB SXM: about 60 min from nothing, 4 at a time, each on a card of its own: a warm start"
    )
    row = time_of(workers=4, **{"training.device": "cuda", "training.memory_share": 0.5})[4]
    assert row.startswith(
        "  H100 80 GB SXM: about 2.0 h from nothing, 4 at a time, up to 2 on each of 2 cards (as many as they need) and counted "
        "there one after the other, an upper estimate: a warm start"
    )


def seen(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for module in ("cards", "work"):
        monkeypatch.setattr(f"tasks.runs.{module}.accelerators", lambda: ["0"])
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda place: SimpleNamespace(name=name))


def test_hours_on_the_card_of_this_machine_alone(counted: list[Speed], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs at a time that share it take no less than one after the other: 14,449 s."""
    seen(monkeypatch, "NVIDIA H100 80GB HBM3")
    _, row = time_of(workers=2, **{"training.device": "cuda", "training.memory_share": 0.5})
    assert row.startswith(
        "  on the H100 80 GB SXM of this machine: about 4.0 h from nothing, 2 at a time, all on one card and counted there one "
        "after the other, an upper estimate: a warm start"
    )
    assert len(counted) == 1


def test_a_step_that_was_timed_comes_before_what_is_counted(counted: list[Speed]) -> None:
    """Where it was timed on the same device: not the seconds of a CPU, which are kept beside it. Four runs of 4 + 4 x .25 + 128 x
    .01 = 6.28 s and two warm starts of 14: 53.12 s."""
    timed_on_the_cpu()
    on_a_gpu = {"training.device": "cuda"}
    first, *rows = time_of(**on_a_gpu)
    assert first.startswith("time, counted by how steps ran on an H100") and len(counted) == len(rows) == 5
    counted.clear()
    timed(policy_key(load_specification("tiny", on_a_gpu).base), 0.25)
    (line,) = time_of(**on_a_gpu)
    assert line.startswith("time on this machine: about 53 s from nothing, 1 at a time") and "took 0.25 s here" in line
    (line,) = time_of()
    assert line.startswith("time on this machine: about 57 s from nothing, 1 at a time") and "took 0.5 s here" in line
    assert counted == []


def test_what_is_not_counted_of_time_is_said(counted: list[Speed], tmp_path: Path) -> None:
    engine = {"kind": "vllm", "urls": ["http://127.0.0.1:9"], "weights": str(tmp_path)}
    first, *_ = time_of(**{"training.device": "cuda", "rollout.engine": engine})
    assert first.startswith("time, without what rollout servers need, counted by")
    (line,) = time_of(**{"training.processes": 2})
    assert line == "time: runs of several processes are neither timed nor counted as a whole"


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("NVIDIA L4", "L4 24 GB"),
        ("NVIDIA L40S", None),
        ("NVIDIA A100-SXM4-80GB", "A100 80 GB SXM"),
        ("NVIDIA A100 80GB PCIe", "A100 80 GB PCIe"),
        ("NVIDIA A100-SXM4-40GB", None),
        ("NVIDIA H100 80GB HBM3", "H100 80 GB SXM"),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA H200", "H200 141 GB SXM"),
        ("NVIDIA H200 NVL", None),
    ],
)
def test_a_card_is_known_by_its_whole_name(monkeypatch: pytest.MonkeyPatch, name: str, row: str | None) -> None:
    seen(monkeypatch, name)
    assert card_here() == row
    assert row is None or row in ACCELERATORS


def test_a_chat_policy_by_path(tmp_path: Path, chat_policy: Any) -> None:
    from igpo_core.policies import save_policy

    save_policy(chat_policy, tmp_path / "model")
    policy = {"kind": "pretrained", "name": str(tmp_path / "model"), "dtype": "bfloat16", "lora": {"rank": 4}}
    rollout = {"questions": 2, "group_size": 2, "max_tokens": 900}
    lines = list(dry_run(changed(tmp_path, policy=policy, warm_start=None, rollout=rollout)))
    assert any("of which an adapter of" in line for line in lines)
    assert "\nthe policy is computed in bfloat16 (this processor has " in lines[0]
    policy["dtype"] = "auto"
    first = next(dry_run(changed(tmp_path, policy=policy, warm_start=None, rollout=rollout)))
    assert f"\nthe policy is computed in {best_dtype('cpu')} (" in first


def test_web_search_is_asked_once_and_needs_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"id": f"{s}{n}", "question": f"Who ruled {s}{n}?", "answers": ["Ann"], "split": s, "source": "custom"}
            for s in ("train", "dev", "test") for n in range(4)]  # fmt: skip
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    policy = {"kind": "new", "architecture": "qwen2", "tokenizer": "chat", "vocabulary": 400, "window": 2048}
    rollout = {"questions": 2, "group_size": 2, "max_tokens": 1900, "max_new_tokens": 16}
    with hostile_server() as server:
        search = {"kind": "web", "api": "serper", "url": f"{server.address}/serper", "timeout": 2.0, "attempts": 1}
        data = {"kind": "files", "questions": [{"path": str(tmp_path / "q.jsonl")}], "search": search}
        preset = changed(tmp_path, data=data, policy=policy, warm_start=None, rollout=rollout)
        lines = list(dry_run(preset))
        assert lines[-1].startswith("nothing of what was checked") and sum(server.asked.values()) == 1
        monkeypatch.setenv("SEARCH_API_KEY", "")
        monkeypatch.setattr("tasks.lab.secrets.from_block", lambda needed: None)  # no Prefect server has it either
        with pytest.raises(ConfigError, match=r"search.api=serper needs a key.*SEARCH_API_KEY"):
            list(dry_run(preset))


def pretrained(folder: Path, policy: Any, **changes: Any) -> dict[str, Any]:
    from igpo_core.policies import save_policy

    save_policy(policy, folder / "model")
    kept = json.loads((folder / "model" / "config.json").read_text())
    (folder / "model" / "config.json").write_text(json.dumps({**kept, **changes}))
    return {
        "policy": {"kind": "pretrained", "name": str(folder / "model"), "lora": {"rank": 4}},
        "warm_start": None,
        "rollout": {"questions": 2, "group_size": 2, "max_tokens": 900},
    }


def test_a_model_that_the_engine_cannot_run_is_said(tmp_path: Path, chat_policy: Any) -> None:
    base = pretrained(tmp_path, chat_policy, attn_logit_softcapping=50.0)
    base["rollout"]["engine"] = {"kind": "continuous"}
    with pytest.raises(ConfigError, match=r"this model has a cap on attention's scores: set rollout\.engine\.kind="):
        list(dry_run(changed(tmp_path, **base)))


def test_what_the_model_cannot_do_is_said(tmp_path: Path, chat_policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    base = pretrained(tmp_path, chat_policy, attention_dropout=0.1)
    with pytest.raises(ConfigError, match="its dropout would make ratios"):
        list(dry_run(changed(tmp_path, **base, optimizer={"gradient_checkpointing": True})))
    lora = {**base["policy"], "lora": {"targets": ["no_such_layer"]}}
    with pytest.raises(ConfigError, match="fits no layer of this model"):
        list(dry_run(changed(tmp_path, **{**base, "policy": lora})))
    with pytest.raises(ConfigError, match="exceeds the 1024 tokens"):
        list(dry_run(changed(tmp_path, **{**base, "rollout": {"max_tokens": 2000}})))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"needs the extra \[lora\]"):
        list(dry_run(changed(tmp_path, **base)))
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"no \*.safetensors in this folder"):
        list(dry_run(changed(tmp_path, **base)))


def test_a_grammar_of_words_by_path(tmp_path: Path, lookup_setup: Any) -> None:
    """What load_policy takes is no fault here."""
    base = pretrained(tmp_path, lookup_setup[2])
    rollout = {"questions": 2, "group_size": 2, "max_tokens": 200}
    assert list(dry_run(changed(tmp_path, **{**base, "rollout": rollout})))[-1].startswith("nothing of what")


def test_several_machines_need_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IGPO_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match="set IGPO_ADDRESS"):
        list(dry_run(changed(tmp_path, training={"nodes": 2})))


def test_what_fits_nowhere_is_said_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tasks.runs.dry_run.ACCELERATORS", {"tiny": (0.0, 1e12, 1e12, 1e12)})
    assert main([changed(tmp_path, training={"device": "cuda"})]) == 0
    assert capsys.readouterr().out.endswith("stands in the way of this run, but memory does\n")


@pytest.mark.parametrize(("share", "fits"), [(0.002, True), (0.001, False)])
def test_a_run_must_fit_its_share_of_a_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float, fits: bool
) -> None:
    """Of a card of 1,000 GiB: the margin alone is 1 GiB, and the tiny policy needs far less besides."""
    monkeypatch.setattr("tasks.runs.dry_run.ACCELERATORS", {"huge": (1000.0, 1e12, 1e12, 1e12)})
    lines = list(dry_run(changed(tmp_path, training={"device": "cuda", "memory_share": share})))
    (line,) = [line for line in lines if line.startswith("  huge: ") and "fit" in line]
    assert line.startswith(f"  huge: {'fits' if fits else 'does not fit'} a share of {share:g}")
    assert ("raise training.memory_share" in line) is not fits
    assert lines[-1].endswith(", but memory does") is not fits


def test_of_a_known_card_its_own_memory_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cards = {"tiny": (0.0, 1e12, 1e12, 1e12), "huge": (1000.0, 1e12, 1e12, 1e12)}
    monkeypatch.setattr("tasks.runs.dry_run.ACCELERATORS", cards)
    for card, fits in (("tiny", False), ("huge", True), (None, True)):
        monkeypatch.setattr("tasks.runs.dry_run.card_here", lambda card=card: card)
        lines = list(dry_run(changed(tmp_path, training={"device": "cuda"})))
        told = [line.split(":")[0] for line in lines if "; a step of the longest" in line]
        assert told == ([f"  {card} of this machine"] if card else ["  tiny", "  huge"])
        assert lines[-1].endswith(", but memory does") is not fits


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"policy": {"kind": "pretrained", "name": "/no/such/model"}, "warm_start": None}, "/no/such/model"),
        ({"rollout": {"max_tokens": 18, "max_new_tokens": 16}}, "no train question leaves room"),
        ({"evaluation": {"judge": {"url": "http://127.0.0.1:1", "model": "m", "key_variable": "NO_API_KEY"}}}, "NO_API_KEY"),
    ],
)  # fmt: skip
def test_what_would_stop_the_run(tmp_path: Path, change: Any, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        list(dry_run(changed(tmp_path, **change)))


def test_a_rollout_server_is_asked_and_left_alone(tmp_path: Path) -> None:
    """Also while a run has it: the dry run takes no lock."""
    from igpo_core.config import VllmEngine
    from igpo_core.rollout.served_engine import hold

    engine: dict[str, Any] = {"kind": "vllm", "urls": ["http://127.0.0.1:9"], "weights": str(tmp_path / "weights")}
    rollout = {"questions": 2, "group_size": 2, "max_tokens": 128, "engine": engine}
    with pytest.raises(ServiceError, match=r"127.0.0.1:9.*vllm serve"):
        list(dry_run(changed(tmp_path, rollout=rollout)))
    with rollout_server(405) as url:
        engine["urls"] = [url]
        held = hold(VllmEngine.model_validate(engine))
        assert f"rollout server {url} answers with served" in "\n".join(dry_run(changed(tmp_path, rollout=rollout)))
        assert held
    with rollout_server(404) as url:
        engine["urls"] = [url]
        with pytest.raises(ServiceError, match="started with VLLM_SERVER_DEV_MODE=1"):
            list(dry_run(changed(tmp_path, rollout=rollout)))


@contextmanager
def rollout_server(status: int) -> Iterator[str]:
    """A vLLM that answers a GET of /collective_rpc with `status`: 405 where the route is there, for POST."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/collective_rpc" else 200)
            self.end_headers()
            self.wfile.write(b'{"data": [{"id": "served"}]}')

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("+ message.content + '\\n</tool_response>", "+ message.content[:20] + '\\n</tool_response>", "cuts the tool's reply"),
        ("assistant\\n'", "assistant\\n<think></think>'", "opens the thought itself and closes it"),
        ("'\\n' + message.content -", "'\\n' + message.content.split('</think>')[-1] -", "drops their thoughts"),
        ("'<|im_end|>\\n'", "'\\n'", "does not end a turn with the eos_token"),
    ],
)  # fmt: skip
def test_a_template_that_cannot_be_continued(tmp_path: Path, chat_policy: Any, old: str, new: str, reason: str) -> None:
    base = pretrained(tmp_path, chat_policy)
    template = tmp_path / "model" / "chat_template.jinja"
    assert old in template.read_text()
    template.write_text(template.read_text().replace(old, new))
    with pytest.raises(ConfigError, match=reason):
        list(dry_run(changed(tmp_path, **base)))


def test_a_template_that_shows_no_tool_is_told(tmp_path: Path, chat_policy: Any) -> None:
    base, warning = pretrained(tmp_path, chat_policy), "does not tell of the tools"
    assert not any(warning in line for line in dry_run(changed(tmp_path, **base)))
    template = tmp_path / "model" / "chat_template.jinja"
    template.write_text(template.read_text().replace("and tools", "and false"))
    assert any(warning in line for line in dry_run(changed(tmp_path, **base)))


def test_thinking_that_the_template_cannot_switch_is_refused(tmp_path: Path, chat_policy: Any) -> None:
    base = pretrained(tmp_path, chat_policy)
    base["policy"]["thinking"] = False
    with pytest.raises(ConfigError, match=r"policy\.thinking=false: this chat template does not read enable_thinking"):
        list(dry_run(changed(tmp_path, **base)))
    template = tmp_path / "model" / "chat_template.jinja"
    template.write_text("{{- '' if enable_thinking | default(true) else 'off ' -}}" + template.read_text())
    assert list(dry_run(changed(tmp_path, **base)))[-1].startswith("nothing of what was checked")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub has a name that never resolves (RFC 2606)."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://hub.invalid")
    monkeypatch.setenv("no_proxy", "*")


HUB = "hf://datasets/owner/some-data@0123456789abcdef0123456789abcdef01234567/q.jsonl"


def test_without_network_memory_is_counted_where_no_data_are_needed(
    tmp_path: Path, chat_policy: Any, no_network: None, capsys: pytest.CaptureFixture[str]
) -> None:
    from igpo_core.policies import save_policy

    save_policy(chat_policy, tmp_path / "model")
    data = {"kind": "files", "questions": [{"path": HUB}], "corpus": [HUB]}
    policy = {"kind": "pretrained", "name": str(tmp_path / "model")}
    rollout = {"questions": 2, "group_size": 2, "max_tokens": 900}
    preset = changed(tmp_path, data=data, policy=policy, warm_start=None, rollout=rollout)
    assert main([preset]) == 1
    said = capsys.readouterr()
    assert "memory: " in said.out and "this machine has" in said.out
    assert "without the data, for trajectories of rollout.max_tokens=900" in said.out
    assert said.err.count("no network: hub.invalid") == 1 and f"{HUB} is a file of it" in said.err


def test_without_network_all_that_the_hub_has_is_named_at_once(
    tmp_path: Path, no_network: None, capsys: pytest.CaptureFixture[str]
) -> None:
    data = {"kind": "files", "questions": [{"path": HUB}], "corpus": [HUB]}
    preset = changed(tmp_path, data=data, policy={"kind": "pretrained", "name": "owner/model"}, warm_start=None)
    assert main([preset]) == 1
    said = capsys.readouterr().err
    assert f"{HUB} is a file of it" in said and "policy.name=owner/model is a model of it" in said
    assert "set policy.name to a folder" in said and "Retrying" not in said
