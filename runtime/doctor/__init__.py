"""Finds what is wrong with machine, environments, packages, service and logs, and says how to mend it."""
