from .model import LanguageModel as LanguageModel
from .view_cache import ViewCache as ViewCache
