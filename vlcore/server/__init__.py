"""The OpenAI-compatible HTTP server: ``vlcore serve`` (extra ``vlcore[serve]``).

:class:`Server` answers requests with a pipeline in a process of your own.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
