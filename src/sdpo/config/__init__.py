"""The configuration: one declaration for YAML files, `key=value` overrides and Python."""

from sdpo.config.schema import Config

__all__ = ["Config"]
