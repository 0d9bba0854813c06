"""The errors of the engine. Each text says what happened, with the values, and what to change.

At the end: what the errors of others say. Nothing here needs more than the standard library.
"""

from collections.abc import Collection


class AsyncDiffError(RuntimeError):
    """Base of every error that this project raises on purpose."""


class SettingError(AsyncDiffError):
    """An environment variable has a value that makes no sense."""


class RequestError(AsyncDiffError):
    """The body of an HTTP request is not what its route takes."""


class InputError(AsyncDiffError):
    """A node's input is not of the kind that its name says."""


class PlanError(AsyncDiffError):
    """The requested devices, stages, replicas or stride do not fit together."""


class ScheduleError(AsyncDiffError):
    """A schedule parameter is out of its range."""


class UnspreadableError(AsyncDiffError):
    """This MODEL, with what it carries, cannot be spread; on one device it works."""


class LayoutError(UnspreadableError):
    """The architecture has no known trunk, or its trunk did not run as its layout says."""


class CheckpointError(AsyncDiffError):
    """A model file is damaged, or is not what it is taken for."""


class NumbersError(UnspreadableError):
    """A newly loaded model computes no numbers."""


class LoaderError(UnspreadableError):
    """The loader of a MODEL does not tell how workers can load it too."""


class UnsupportedPatchError(UnspreadableError):
    """A model patch cannot cross the process border; the text names it."""


class ModelChangedError(UnspreadableError):
    """Something was changed on the diffusion model of a spread MODEL itself, where it is lost."""


class ChannelClosedError(AsyncDiffError):
    """The other end of a control channel is gone."""


class ChannelTimeoutError(AsyncDiffError):
    """The other end of a control channel did not take or send in time what was due."""


class NotPlainError(AsyncDiffError, TypeError):
    """A value cannot be sent to another process."""


class ChannelDataError(AsyncDiffError):
    """What came over a control channel is no request and no answer."""


class LinkError(AsyncDiffError):
    """In a worker: the link to another worker broke."""


class WorkerError(AsyncDiffError):
    """Something went wrong in a worker process; the text names worker, device and log file."""


class WorkerStartError(WorkerError):
    """A worker process did not come up."""


class WorkerDiedError(WorkerError):
    """A worker process ended while it was needed."""


class WorkersGoneError(WorkerError):
    """The group was ended before it was asked, or while it was: another thread met its trouble."""


class WorkerTimeoutError(WorkerError):
    """A worker process made no progress within the deadline."""


class WorkerFailedError(WorkerError):
    """A worker process raised an exception; its traceback is in its log file."""


class WorkerLinkError(WorkerError):
    """The link between two worker processes broke, and both of them live."""


class WorkerRefusedError(WorkerError, UnspreadableError):
    """A worker met something that cannot work on a MODEL that is spread."""


class WorkerOutOfMemoryError(WorkerError):
    """A worker's device ran out of memory.

    Attributes:
        device: that device; empty where it is not known.
    """

    device = ""


# How Python, the C library, PyTorch and the loader of shared objects say it.
_OUT_OF_MEMORY = (
    *("can't allocate memory", "std::bad_alloc", "Cannot allocate memory"),
    "failed to map segment",
    "could not create a primitive",  # oneDNN, for a layer that PyTorch knows it has
)


def short_name(module: str) -> str:
    """The name of a module; of a node pack's, which begins with its folder, without that."""
    return module.replace("\\", "/").rpartition("/")[2]


MAX_ERROR_TEXT = 16_384  # characters of an error that is kept, or sent by a worker


def few(names: Collection[str]) -> str:
    """Three of the names, and how many more there are."""
    text = "; ".join([*names][:3])
    return text if len(names) <= 3 else f"{text}; and {len(names) - 3} more"


def text_of(error: BaseException) -> str:
    """The class of an exception, and what it says."""
    name = type(error).__name__
    return f"{name}: {error}" if str(error) else name


def says_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of no particular library says that memory ran out."""
    if isinstance(error, MemoryError):
        return True
    kinds = RuntimeError | OSError | ImportError
    return isinstance(error, kinds) and any(sign in str(error) for sign in _OUT_OF_MEMORY)
