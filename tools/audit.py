"""Looks up the installed packages in PyPI's list of known vulnerabilities, by pip-audit in an environment of its own.

    python tools/audit.py FOLDER-OF-PACKAGES [--strict]

Without a network it says so. With --strict, a known vulnerability ends it with exit code 1.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

PATIENCE = 240  # seconds


def audit(packages: str) -> list[dict[str, Any]] | None:
    """pip-audit's record of each package; None where it cannot be installed or reaches nothing."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = str(Path(folder) / ("Scripts" if sys.platform == "win32" else "bin") / "python")
        install = [python, "-m", "pip", "install", "--quiet", "pip-audit"]
        look_up = [python, "-m", "pip_audit", "--path", packages, "--format", "json", "--progress-spinner", "off"]
        try:
            subprocess.run(install, check=True, capture_output=True, timeout=PATIENCE)
            answer = subprocess.run(look_up, capture_output=True, text=True, timeout=PATIENCE).stdout
            return list(json.loads(answer)["dependencies"])
        except (subprocess.SubprocessError, ValueError, KeyError):
            return None


def main() -> int:
    """Print the findings."""
    packages, *flags = sys.argv[1:]
    found = audit(packages)
    looked_up = [package for package in found or [] if "skip_reason" not in package]
    if not looked_up:
        print("audit: not done, the list of known vulnerabilities is not reached from here")
        return 0
    known = [(package, one) for package in looked_up for one in package["vulns"]]
    for package, one in known:
        mended = ", ".join(one["fix_versions"]) or "no version yet"
        print(f"audit: {package['name']} {package['version']}: {one['id']}, mended in {mended}")
    print(f"audit: {len(known)} known vulnerabilities in {len(looked_up)} of {len(found or [])} packages looked up")
    return 1 if known and "--strict" in flags else 0


if __name__ == "__main__":
    sys.exit(main())
