from .metadata import PluginInfo as PluginInfo
from .metadata import PluginState as PluginState
from .metadata import installed_plugins as installed_plugins
from .registry import Plugin as Plugin
from .registry import find_plugin as find_plugin
from .registry import load_plugin as load_plugin
