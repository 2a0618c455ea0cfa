"""Which of MLflow's metrics a report reads, and under which words it shows them."""

from tasks.report.metrics import METRICS, explaining, wanted

RUBRIC = {"accuracy": "accuracy", "closeness": "closeness"}


def test_a_report_reads_what_it_shows_and_nothing_else() -> None:
    read = [
        "eval/all/accuracy",
        "test_best/all/closeness",
        "reward/gain_turn_3",
        "reward/gain_at_hop_2",
        "reward/gain_by_accuracy",
        "diagnostics/belief_std_unsolved_turn_0",
        "diagnostics/belief_turn_0",
        "progress/seconds",
    ]
    other = [
        "eval/all/f1",  # no score of this rubric
        "eval/lookup/accuracy",  # of one source
        "reward/gain_turn_x",
        "diagnostics/belief_other_turn_0",
        "time/update",
        "system/memory_gib",
        "xprogress/seconds",
    ]
    assert wanted([*read, *other], RUBRIC) == read


def test_what_explains_has_its_unit_and_the_headlines_title() -> None:
    titles = {name: title for name, title, _ in explaining({"f1": "F1", "em": "EM"})}
    assert titles["reward/gain_by_f1"] == "total gain by F1 (r)"
    assert titles["diagnostics/gain_thought"] == "gain from the thought, after the update (nats)"
    assert "reward/gain_by_em" not in titles


def test_a_place_shows_a_metric_once() -> None:
    lines = [(metric.place, metric.key) for metric in METRICS]
    assert len({*lines}) == len(lines)
