from .image import load_image as load_image
from .policy import ImageAccess as ImageAccess
from .policy import ImageLimits as ImageLimits
from .source import ImageSource as ImageSource
