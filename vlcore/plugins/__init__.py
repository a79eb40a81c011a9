"""Installed plugins: their metadata, the one that serves a checkpoint, and its stages."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
