"""Errors a user can act on; each message names the thing, the value and the next step."""


class HotdaskError(Exception):
    """Base of every error hotdask raises on purpose."""


class SettingsError(HotdaskError):
    """A setting is missing, unknown or contradicts another."""


class InputError(HotdaskError):
    """The inputs of a run (files, patterns, tables) cannot be used."""


class SpectrumError(HotdaskError):
    """One spectrum cannot be used; ``reason`` is a code of `hotdask.readers.lamost.REASONS`."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason
        self.detail = detail

    def __reduce__(self):
        return type(self), (self.reason, self.detail)


class EmulatorError(HotdaskError):
    """An emulator file does not fit this version, grid or label order."""


class RunError(HotdaskError):
    """A run directory is inconsistent, or a step of a run failed."""


class DiskFullError(RunError):
    """A file could not be written because its file system is full."""


class WorkerError(RunError):
    """A worker cannot do a task that another may be able to do: it has other code, or does not see the inputs."""


class MissingInputError(WorkerError):
    """A worker does not see ``paths``, input files that were there where the run was started."""

    def __init__(self, host: str, paths: tuple[str, ...]):
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        super().__init__(
            f"{host} does not see {paths[0]}{more}, which the command sees; mount the inputs there, at the same path"
        )
        self.host, self.paths = host, paths

    def __reduce__(self):
        return type(self), (self.host, self.paths)


class SynthesisError(HotdaskError):
    """One synthesis failed; a library records the reason and goes on."""
