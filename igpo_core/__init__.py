"""The method, as a library that stands on its own: it knows nothing of Prefect, MLflow or Great Expectations."""
