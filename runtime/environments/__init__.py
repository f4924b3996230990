"""Environments of the engines, side by side: planned as commands, made, resumed, repaired and removed."""
