"""One observable, retryable step each: igpo_core on the inside, Prefect and MLflow on the outside."""
