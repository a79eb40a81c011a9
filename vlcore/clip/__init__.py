"""What plugins for models with a CLIP-style tower share.

========================  ==========================================================
``ClipVisionModel``       a whole vision model: views of a picture, tower, projector
``ClipSource``            where a tower lies, inside a checkpoint or beside it
``ClipTower``             the tower, up to a hidden state; ``ClipConfig`` its sizes
``mlp_projector``         linear layers from a tower's width to a language model's
``ClipProcessor``         a view → pixels, as ``preprocessor_config.json`` says
``Size``                  a width and a height in pixels
``pad_to_square``         a picture in the middle of a square
``best_canvas``           the canvas of several that suits a picture
``fit_on_canvas``         a picture in the middle of a canvas
``cut_tiles``             a canvas as a grid of square tiles
``read_pinpoints``        the canvases that a configuration lists
``module_sources``        a module's tensors under a checkpoint's names
========================  ==========================================================

Unlike ``vlcore`` itself, this package imports torch: import it inside the hooks.
"""

from vlcore.clip.images import (
    ClipProcessor,
    Size,
    best_canvas,
    cut_tiles,
    fit_on_canvas,
    pad_to_square,
    read_pinpoints,
)
from vlcore.clip.projector import mlp_projector
from vlcore.clip.source import ClipSource, module_sources
from vlcore.clip.tower import ClipConfig, ClipTower
from vlcore.clip.vision import ClipVisionModel

__all__ = [
    "ClipConfig",
    "ClipProcessor",
    "ClipSource",
    "ClipTower",
    "ClipVisionModel",
    "Size",
    "best_canvas",
    "cut_tiles",
    "fit_on_canvas",
    "mlp_projector",
    "module_sources",
    "pad_to_square",
    "read_pinpoints",
]
