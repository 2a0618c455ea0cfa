"""What runs tell MLflow, and how it gets there."""
