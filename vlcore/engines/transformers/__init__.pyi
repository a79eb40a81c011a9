from .engine import TransformersEngine as TransformersEngine
from .engine import TransformersEngineConfig as TransformersEngineConfig
