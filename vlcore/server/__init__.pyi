from .serving import Server as Server
from .settings import ServerSettings as ServerSettings
