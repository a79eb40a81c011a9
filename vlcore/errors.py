"""The exceptions vlcore raises.

::

    VlcoreError
    ├── PluginError
    │   ├── NoPluginError             no installed plugin serves the checkpoint
    │   ├── PluginConflictError       more than one does
    │   ├── PluginImportError         a candidate cannot be imported
    │   ├── IncompatiblePluginError   the plugin asks for another vlcore
    │   └── PluginContractError       a hook or model breaks the plugin contract
    ├── CheckpointError
    │   ├── CheckpointNotFoundError   no such directory, Hub repository or file
    │   ├── ConfigError               a JSON file is absent, malformed or contradictory
    │   ├── TensorError               a tensor is missing, unexpected, damaged or misshapen
    │   └── ViewError                 a text view cannot be written, or has changed since
    ├── ImageError (ValueError)
    │   ├── ImageDownloadError        its URL cannot be downloaded, or not in time
    │   └── ImageLimitError           larger than a limit allows
    ├── VideoError (ValueError)
    │   ├── VideoDownloadError        its URL cannot be downloaded, or not in time
    │   └── VideoLimitError           larger, longer or slower to decode than a limit allows
    ├── PromptError (ValueError)
    │   └── ContextLengthError        longer than the model's context
    ├── OptionError (ValueError)      an option that is unknown or out of range
    │   └── GrammarError              a grammar for answers is invalid or too complex
    └── EngineError
        ├── EngineUnavailableError    the engine cannot run this model here
        └── EngineClosedError         the engine or pipeline was closed

Every message states what was expected, what was received, where, and what to do next.
"""

__all__ = [
    "CheckpointError",
    "CheckpointNotFoundError",
    "ConfigError",
    "ContextLengthError",
    "EngineClosedError",
    "EngineError",
    "EngineUnavailableError",
    "GrammarError",
    "ImageDownloadError",
    "ImageError",
    "ImageLimitError",
    "IncompatiblePluginError",
    "NoPluginError",
    "OptionError",
    "PluginConflictError",
    "PluginContractError",
    "PluginError",
    "PluginImportError",
    "PromptError",
    "TensorError",
    "VideoDownloadError",
    "VideoError",
    "VideoLimitError",
    "ViewError",
    "VlcoreError",
]


class VlcoreError(Exception):
    """Base class of every exception that vlcore raises on purpose."""


class PluginError(VlcoreError):
    """Something is wrong with a plugin or with the choice of one."""


class NoPluginError(PluginError):
    """No installed plugin serves the checkpoint."""


class PluginConflictError(PluginError):
    """More than one installed plugin serves the checkpoint."""


class PluginImportError(PluginError):
    """A plugin that may serve the checkpoint cannot be imported."""


class IncompatiblePluginError(PluginError):
    """A plugin's ``Requires-Dist`` excludes the installed vlcore."""


class PluginContractError(PluginError):
    """A plugin's hook, model or template does not keep the plugin contract."""


class CheckpointError(VlcoreError):
    """A checkpoint cannot be read."""


class CheckpointNotFoundError(CheckpointError):
    """The checkpoint, or a file that it needs, is not there."""


class ConfigError(CheckpointError):
    """A JSON file of the checkpoint is absent, damaged or contradictory."""


class TensorError(CheckpointError):
    """Tensors are missing, unexpected, damaged or of the wrong shape."""


class ViewError(CheckpointError):
    """A text view cannot be written, or is not what was written."""


class ImageError(VlcoreError, ValueError):
    """An image cannot be fetched, opened or decoded."""


class ImageDownloadError(ImageError):
    """An image cannot be downloaded from its URL, or not in time."""


class ImageLimitError(ImageError):
    """An image is larger than a limit allows."""


class VideoError(VlcoreError, ValueError):
    """A video cannot be fetched, opened or decoded."""


class VideoDownloadError(VideoError):
    """A video cannot be downloaded from its URL, or not in time."""


class VideoLimitError(VideoError):
    """A video is larger or longer, or takes longer to decode, than a limit allows."""


class PromptError(VlcoreError, ValueError):
    """A prompt or conversation cannot be turned into tokens."""


class ContextLengthError(PromptError):
    """A prompt does not fit the model's context."""


class OptionError(VlcoreError, ValueError):
    """An option is unknown or out of range."""


class GrammarError(OptionError):
    """A grammar for answers, such as a JSON schema, is invalid, not supported or too complex."""


class EngineError(VlcoreError):
    """The engine failed while it served a request."""


class EngineUnavailableError(EngineError):
    """The engine cannot run this model on this machine."""


class EngineClosedError(EngineError):
    """The engine or the pipeline has been closed."""
