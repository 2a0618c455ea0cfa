"""Prefect's tasks, thin. What they stand on is in rooms: specification, data, runs, tracking (MLflow), report and lab."""
