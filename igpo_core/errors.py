"""Errors that a user can act on: the message names the thing that is wrong and the remedy."""


class IgpoError(Exception):
    """Base of every error whose cause lies outside the code: input, configuration, files, services."""


class DataError(IgpoError):
    """A file or table that cannot be used: names the file, the row or field, and the remedy."""


class NoNetwork(DataError):
    """The hub cannot be reached from here: names what is needed of it, and how to give that without a network."""


class ConfigError(IgpoError):
    """A combination of settings that cannot work: names the settings and the remedy."""


class ExpectationError(IgpoError):
    """A run that its user wanted to be stopped there (`expect`): names the metric, its value and the step."""


class CheckpointError(IgpoError):
    """A checkpoint that is damaged, incomplete or of another architecture: names the path and the remedy."""


class OutOfMemory(IgpoError):
    """Memory that ran out: names what was under way and the settings to lower (igpo_core/memory.py)."""


class ServiceError(IgpoError):
    """A server that cannot be started or reached: names the address and the remedy."""
