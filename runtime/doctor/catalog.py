"""Every finding of the machine, environment and service checks: stable ids, what they mean, what to type."""

from __future__ import annotations

from dataclasses import dataclass

from runtime.doctor.finding import Finding, Severity


@dataclass(frozen=True)
class Entry:
    """What a check can find; `found` turns it into a finding with what was seen."""

    id: str
    area: str
    severity: Severity
    title: str
    cause: str
    fix: str
    command: str = ""

    def found(self, evidence: str = "", *, where: str = "", fix: str = "", command: str = "") -> Finding:
        return Finding(
            self.id,
            self.severity,
            self.title,
            self.cause,
            fix or self.fix,
            command or self.command,
            evidence,
            where,
        )


_ENTRIES = (
    Entry(
        "platform_unsupported",
        "machine",
        "error",
        "This machine cannot run tritonserver",
        "tritonserver's builds are for Linux on x86-64 with glibc 2.35 or later.",
        "Use Ubuntu 22.04, Debian 12 or later, or the container of Dockerfile.triton.",
    ),
    Entry(
        "python_unsupported",
        "machine",
        "error",
        "This Python cannot carry the base environment",
        "Triton's Python backend needs numpy 1, which has wheels for Python 3.10 to 3.12 only.",
        "Install one of them, or name it with EW_PYTHON.",
        "EW_PYTHON=/path/to/python3.12 ./ew setup",
    ),
    Entry(
        "libpython_missing",
        "machine",
        "error",
        "The shared library of Python is missing",
        "Triton's Python stub links to it; distributions put it into a package of its own.",
        "Install it.",
        "apt install libpython3.11",
    ),
    Entry(
        "gpu_none",
        "machine",
        "info",
        "No NVIDIA GPU",
        "nvidia-smi is missing or shows none; only the cpu engine can run here.",
        "On a GPU machine, install the driver and check that nvidia-smi answers.",
        "nvidia-smi",
    ),
    Entry(
        "driver_trouble",
        "machine",
        "error",
        "The NVIDIA driver does not answer",
        "nvidia-smi is there but fails: the kernel module is not loaded or does not fit.",
        "Reboot; if it stays, install the driver again.",
        "nvidia-smi",
    ),
    Entry(
        "driver_old",
        "machine",
        "warning",
        "The driver is too old for today's engines",
        "Engines built with CUDA 13 need driver 580 or later; CUDA 12 needs 525.",
        "Update the driver, or set up an older release.",
        "./ew setup --engine cuda-trt --version 1.0.0 --dry-run",
    ),
    Entry(
        "gpu_generation_old",
        "machine",
        "warning",
        "A GPU is too old for TensorRT-LLM",
        "Compute capability below 8.0 is not in TensorRT-LLM's list; below 7.5 support was removed.",
        "Use a newer GPU, or vLLM with dtype float16.",
    ),
    Entry(
        "gpu_memory_taken",
        "machine",
        "info",
        "A GPU's memory is mostly in use",
        "Another process holds it; engines that take a share of free memory get little.",
        "See who holds it, or choose another GPU.",
        "nvidia-smi",
    ),
    Entry(
        "disk_low",
        "machine",
        "warning",
        "Little free disk",
        "Environments, packages and logs need space; a full disk ends conversions and logs.",
        "Free space, or move the installation with EW_HOME.",
        "df -h",
    ),
    Entry(
        "memory_low",
        "machine",
        "warning",
        "Little free memory",
        "The cpu engine keeps the weights and a KV cache in host memory.",
        "End other programs, or use a smaller model.",
        "free -h",
    ),
    Entry(
        "shm_small",
        "machine",
        "warning",
        "/dev/shm is small",
        "Triton's Python models talk through it; containers get 64 MB by default.",
        "Start the container with a larger one.",
        "docker run --shm-size=2g ...",
    ),
    Entry(
        "docker_unusable",
        "machine",
        "info",
        "Docker is not usable",
        "NGC's containers are one way to serve cuda-trt and cuda-vllm.",
        "Start the daemon, or join the docker group; without Docker use ./ew setup.",
    ),
    Entry(
        "docker_without_gpu",
        "machine",
        "warning",
        "Docker cannot give GPUs to containers",
        "The NVIDIA Container Toolkit is not installed or not configured.",
        "Install nvidia-container-toolkit and configure it.",
        "sudo nvidia-ctk runtime configure --runtime=docker && sudo systemctl restart docker",
    ),
    Entry(
        "mpirun_missing",
        "machine",
        "info",
        "mpirun is not on the path",
        "Engines over several GPUs are started with it, outside of containers.",
        "Install Open MPI.",
        "sudo apt-get install -y openmpi-bin libopenmpi-dev",
    ),
    Entry(
        "index_unreachable",
        "network",
        "warning",
        "A package index cannot be reached",
        "Setting up an environment downloads packages.",
        "Set a mirror (PIP_INDEX_URL), a proxy (HTTPS_PROXY), or use a folder of wheels.",
        "./ew setup --find-links FOLDER",
    ),
    Entry(
        "hub_unreachable",
        "network",
        "warning",
        "The Hugging Face hub cannot be reached",
        "Models named by a hub id are downloaded from it.",
        "Set a mirror (HF_ENDPOINT), or copy the model here and give its folder.",
    ),
    Entry(
        "base_incomplete",
        "environment",
        "error",
        "The base environment is not complete",
        "A package that ew needs is missing or has a version that does not work.",
        "Make it again.",
        "rm -rf .venv && ./ew setup",
    ),
    Entry(
        "environment_broken",
        "environment",
        "error",
        "An environment is broken",
        "Its Python does not start, or a package of it is gone.",
        "Set it up again; what is broken is rebuilt.",
    ),
    Entry(
        "environment_unfinished",
        "environment",
        "warning",
        "An environment was not finished",
        "Its setup was interrupted or failed.",
        "Run the same setup again; it goes on where it stopped.",
    ),
    Entry(
        "config_invalid",
        "project",
        "error",
        "deploy/config.json is not valid",
        "A key or value in it is not allowed.",
        "Mend it as the message says.",
    ),
    Entry(
        "package_unusable",
        "project",
        "error",
        "A model's package cannot be used",
        "Its folder, manifest or files are missing or changed.",
        "Convert the model again, or correct model_path.",
        "./ew package verify",
    ),
    Entry(
        "engine_pending",
        "project",
        "warning",
        "A package has no engine yet",
        "The engine step needs a GPU and TensorRT-LLM, and has not run.",
        "Run its command on a GPU machine.",
    ),
    Entry(
        "repository_lint",
        "project",
        "error",
        "The model repository breaks a rule of lint",
        "tritonserver would refuse it, or serve it wrongly; each rule says why.",
        "Render it again, or mend the line; ./ew lint has rule, reason and cure.",
        "./ew lint",
    ),
    Entry(
        "service_stale",
        "service",
        "warning",
        "A service is recorded but gone",
        "It crashed, or the machine was restarted.",
        "Start again; the remains are cleaned up.",
        "./ew stop",
    ),
    Entry(
        "service_broken",
        "service",
        "error",
        "The service has lost a process",
        "tritonserver or the proxy ended by itself.",
        "Read its log, then restart.",
        "./ew stop && ./ew start ...",
    ),
    Entry(
        "model_not_ready",
        "service",
        "error",
        "A model is not ready",
        "It failed to load, or its tritonserver or worker is down.",
        "Read the worker's log.",
        "./ew logs worker",
    ),
    Entry(
        "model_unloaded",
        "service",
        "info",
        "A model is unloaded",
        "It was unloaded on purpose, or after its idle time; that is no fault.",
        "Load it again when it is to serve; one with idle_unload_seconds comes back with its next request.",
        "./ew start --model M",
    ),
    Entry(
        "proxy_not_ready",
        "service",
        "error",
        "The proxy is not ready",
        "It does not answer, or cannot reach tritonserver.",
        "Read its log.",
        "./ew logs proxy",
    ),
    Entry(
        "port_taken",
        "service",
        "warning",
        "The default port is in use",
        "Another program listens on port 8080, and no service of ew is running.",
        "Start on another port.",
        "./ew start --port 8090 ...",
    ),
    Entry(
        "key_file_open",
        "service",
        "error",
        "A key file can be read by other users",
        "Keys give access to the service.",
        "Take the permission away.",
        "chmod 600 run/keys.json run/api_key",
    ),
    Entry(
        "log_unreadable",
        "log",
        "warning",
        "A log cannot be read",
        "It belongs to another user, most likely the one who started the service; the rest was examined.",
        "Run ew as that user, or have that user give you the right to read the logs folder.",
        "chmod -R g+rX logs",
    ),
    Entry(
        "log_unknown_error",
        "log",
        "warning",
        "An error that the book of known lines does not hold",
        "The first line of the log that looks like an error.",
        "Read the lines around it; report it with a bundle.",
        "./ew doctor --bundle FILE",
    ),
)

CATALOG: dict[str, Entry] = {entry.id: entry for entry in _ENTRIES}


def found(id: str, evidence: str = "", *, where: str = "", fix: str = "", command: str = "") -> Finding:
    """The finding `id` with what was seen."""
    return CATALOG[id].found(evidence, where=where, fix=fix, command=command)
