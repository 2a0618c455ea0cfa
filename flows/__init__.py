"""The chains of steps that a user starts: prepare-data, train, evaluate, ablation, night."""
