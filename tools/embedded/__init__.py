"""The parts of `tools/build_embedded.py`."""
