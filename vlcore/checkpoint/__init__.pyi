from .checkpoint import Checkpoint as Checkpoint
from .renaming import renamed as renamed
from .tensor_source import TensorSource as TensorSource
