"""The conformance kit: named checks that every plugin should pass.

Subclass :class:`PluginConformance` in the tests of a plugin, or call :func:`check_plugin`; at the
command line it is ``vlcore check``. Names are imported when they are first used:
:class:`PluginConformance` needs pytest (extra ``vlcore[testing]``), and nothing else does.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
