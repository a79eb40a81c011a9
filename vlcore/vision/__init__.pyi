from .encoder import ImageEncoder as ImageEncoder
from .model import ImageInputs as ImageInputs
from .model import ImageRows as ImageRows
from .model import VisionModel as VisionModel
from .stats import EncoderStats as EncoderStats
