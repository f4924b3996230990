"""Environments, tritonserver, start, stop, status, logs."""
