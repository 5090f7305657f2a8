"""The commands besides training, in a file or a folder each."""
