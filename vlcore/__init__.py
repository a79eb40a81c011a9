"""vlcore: a plugin framework for vision-language models.

The public names are listed in ``__init__.pyi``. Each is imported when it is first used, so that
``import vlcore`` stays free of torch.
"""

import lazy_loader

from vlcore._utils.log_filters import filter_torchao_logs
from vlcore._version import __version__ as __version__

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
filter_torchao_logs()
