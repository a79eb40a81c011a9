from .config import TransformersEngineConfig as TransformersEngineConfig
from .engine import TransformersEngine as TransformersEngine
