"""``ClusterArguments``: what a cluster serves and how, in values that YAML can state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from vlcore.engines.selection import ENGINES
from vlcore.errors import OptionError
from vlcore.media.policy import ImageAccess, ImageLimits
from vlcore.server.settings import ServerSettings
from vlcore.vision.encoder import EncoderOptions

_T = TypeVar("_T")

_ENCODER_OPTIONS = sorted(
    EncoderOptions.__annotations__.keys() - {"image_access", "image_limits", "rows_device"}
)


@dataclass(frozen=True, kw_only=True)
class ClusterArguments:
    """The arguments of :func:`vlcore.cluster.build`, each a value that YAML can state.

    Raises:
        OptionError: An argument is unknown, or out of range.
    """

    model: str
    """Checkpoint directory, which must exist on each machine, or Hub repo id."""
    plugin: str | None = None
    """Name of the plugin's distribution, if several support the checkpoint."""
    revision: str | None = None
    """Branch, tag or commit of the Hub repository."""
    chat_template: str | None = None
    """Name of one of the plugin's chat templates."""
    dtype: str = "auto"
    """Data type of weights and image embeddings, as for :func:`vlcore.pipeline`."""
    encoder_device: str = "auto"
    """Device of each image encoder: ``"auto"`` selects a GPU that Ray has assigned, or the CPU."""
    encoder: Mapping[str, Any] = field(default_factory=dict)
    """Settings of :class:`~vlcore.ImageEncoder`, such as ``max_batch_size`` and ``cache_bytes``."""
    engine: str = "auto"
    """Engine that runs the language model."""
    engine_device: str = "auto"
    """Device of each language model."""
    engine_config: Mapping[str, Any] | None = None
    """Settings of the engine: fields of ``TransformersEngineConfig``, of lmdeploy's
    ``TurbomindEngineConfig`` or of vLLM's ``AsyncEngineArgs``. They need a named ``engine``."""
    self_test: bool = True
    """Whether TurboMind or vLLM checks at start-up that image embeddings have the right effect."""
    generation_config: bool = True
    """Whether requests use the sampling options of the model's ``generation_config.json``."""
    max_prompt_tokens: int | None = None
    """Maximum length of a prompt in tokens, image embeddings included."""
    max_prompt_chars: int | None = 200_000
    """Maximum number of characters in all texts of a request."""
    image_access: Mapping[str, Any] = field(default_factory=dict)
    """Fields of :class:`~vlcore.ImageAccess`: the sources that requests may refer to."""
    image_limits: Mapping[str, Any] = field(default_factory=dict)
    """Fields of :class:`~vlcore.ImageLimits`."""
    server: Mapping[str, Any] = field(default_factory=dict)
    """Fields of ``vlcore.server.ServerSettings``, such as ``model_name`` and ``max_requests``."""

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise OptionError(f"engine must be one of {', '.join(ENGINES)}; it is {self.engine!r}")
        if self.engine_config is not None and self.engine == "auto":
            raise OptionError("engine_config needs a named engine, such as engine: transformers")
        for name in ("encoder", "image_access", "image_limits", "server"):
            _check_mapping(name, getattr(self, name))
        if unknown := sorted(set(self.encoder) - set(_ENCODER_OPTIONS), key=str):
            raise OptionError(
                f"encoder has no setting {', '.join(unknown)}; it has {', '.join(_ENCODER_OPTIONS)}"
            )
        _ = self.access, self.limits, self.settings

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> ClusterArguments:
        """Read the arguments of a configuration file."""
        if "model" not in values:
            raise OptionError("args must state a model, such as model: path/to/checkpoint")
        return _make(cls, "args", values)

    @property
    def access(self) -> ImageAccess:
        """The sources that requests may refer to."""
        return _make(ImageAccess, "image_access", self.image_access)

    @property
    def limits(self) -> ImageLimits:
        """The limits of images."""
        values = dict(self.image_limits)
        if "formats" in values:
            values["formats"] = tuple(values["formats"])
        return _make(ImageLimits, "image_limits", values)

    @property
    def settings(self) -> ServerSettings:
        """The settings of the server, without the sampling options of the model."""
        values = {"model_name": self._model_name} | dict(self.server)
        for name in ("api_keys", "allowed_hosts", "allowed_origins"):
            if name in values:
                values[name] = tuple(values[name])
        return _make(ServerSettings, "server", values)

    @property
    def _model_name(self) -> str:
        """The Hub repo id, or the last part of a directory, which may be on other machines only."""
        is_path = Path(self.model).is_absolute() or Path(self.model).is_dir()
        return Path(self.model).resolve().name if is_path else self.model


def _check_mapping(name: str, values: object) -> None:
    if not isinstance(values, Mapping):
        raise OptionError(f"{name} must be a mapping of names to values; it is {values!r:.80}")


def _make(kind: Callable[..., _T], name: str, values: Mapping[str, Any]) -> _T:
    """Call a dataclass with the values of a mapping.

    Raises:
        OptionError: A name is unknown, or a value is out of range or of another type.
    """
    _check_mapping(name, values)
    known = [item.name for item in fields(kind)]  # type: ignore[arg-type]
    if unknown := sorted(set(values) - set(known), key=str):
        raise OptionError(
            f"{name} has no setting {', '.join(map(str, unknown))}; it has {', '.join(known)}"
        )
    try:
        return kind(**values)
    except TypeError as error:
        raise OptionError(f"a value of {name} has a wrong type: {error}") from error
