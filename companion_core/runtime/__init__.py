"""The side without secrets: staging, launcher, supervisor, resource probe."""
