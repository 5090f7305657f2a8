"""Files, locks, signals and devices: the operating system's side."""
