"""When, where and with what code a number was measured; it stays with the number."""

import platform
import subprocess
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch

from evomoe.support.device import device_name
from evomoe.support.version import __version__


def provenance() -> dict[str, str]:
    """Date, commit ("unknown" outside a clone), machine, threads, and versions of what computes."""
    packages = [f"evomoe {__version__}", *(f"{name} {version(name)}" for name in ("torch", "transformers"))]
    return {
        "date": date.today().isoformat(),
        "commit": _commit(),
        "machine": f"{device_name()}, {platform.system()}",
        "threads": str(torch.get_num_threads()),
        "versions": ", ".join(packages),
    }


def _commit() -> str:
    git = ["git", "-C", str(Path(__file__).parents[2])]  # the whole package
    try:
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "."], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head}+" if changed else head
