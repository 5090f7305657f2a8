"""The command line: the only part of sdpo that reads arguments and prints tables."""
