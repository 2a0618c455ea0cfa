-- One database for each: Prefect and MLflow upgrade their own.
CREATE DATABASE prefect;
CREATE DATABASE mlflow;
CREATE DATABASE mlflow_accounts;
