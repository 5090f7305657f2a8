"""The operating system's side: files, locks, signals, messages, and what differs between platforms."""
