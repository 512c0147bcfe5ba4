-- Run once, when the volume is new. One database for each server; their schemas are their own affair.
CREATE DATABASE prefect;
CREATE DATABASE mlflow;
CREATE DATABASE mlflow_auth;
