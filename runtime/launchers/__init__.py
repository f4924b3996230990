"""How a tritonserver is launched: the one on this machine, nvidia-pytriton's, or an NGC container by Docker.

`plan_launch(request, machine)` is pure: the same request and machine give the same command line.
"""

from __future__ import annotations

from runtime.launchers.choose import plan_launch
from runtime.launchers.machine import Machine
from runtime.launchers.machine import inspect as inspect_machine
from runtime.launchers.request import LaunchPlan, LaunchRequest, ServedModel
from runtime.ports import TritonPorts

__all__ = [
    "LaunchPlan",
    "LaunchRequest",
    "Machine",
    "ServedModel",
    "TritonPorts",
    "inspect_machine",
    "plan_launch",
]
