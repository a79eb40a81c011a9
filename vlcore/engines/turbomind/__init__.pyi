from .engine import TurbomindEngine as TurbomindEngine
