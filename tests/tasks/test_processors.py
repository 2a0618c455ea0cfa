"""Runs of one comparison come from one kind of processor, or the report says so loudly."""

import torch

from tasks.runs.processors import joined, mixed, processor


def test_runs_from_two_kinds_of_processor_are_named() -> None:
    names = [f"{arm} seed {seed}" for seed in (0, 1) for arm in ("outcome_only", "igpo")]
    assert mixed((name, "") for name in names) == []  # of older runs nothing is known
    one = [(name, "EPYC (AVX2)") for name in names]
    assert mixed(one) == []
    (line,) = mixed([*one[:3], *one[:3], (names[3], "Xeon (AVX512)")])
    assert "DIFFERENT PROCESSORS" in line and line.endswith(
        "EPYC (AVX2): outcome_only seed 0, igpo seed 0, outcome_only seed 1; Xeon (AVX512): igpo seed 1"
    )


def test_a_run_that_went_on_elsewhere_names_every_processor_once() -> None:
    assert joined(None, "a") == "a" == joined("a", "a")
    assert joined("a", "b") == "a + b" == joined("a + b", "a")


def test_this_machines_processor_has_a_name_and_its_instructions() -> None:
    name, _, instructions = processor("cpu").rpartition(" ")
    assert name and instructions == f"({torch.backends.cpu.get_cpu_capability()})"
