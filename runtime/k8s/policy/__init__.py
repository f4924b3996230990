"""Rules for manifests: the mistakes of published samples, found before a cluster shows them."""

from runtime.k8s.policy import access, capacity, lifetime, network, programs, scaling  # noqa: F401
from runtime.k8s.policy.rules import RULES, Finding, apply

__all__ = ["RULES", "Finding", "apply"]
