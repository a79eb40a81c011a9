"""Shared parts of plugins for models with a CLIP vision encoder.

========================  ==========================================================
``ClipVisionModel``       a whole vision model: views of an image, encoder, projector
``ClipSource``            where an encoder is stored: in a checkpoint or next to it
``ClipTower``             the encoder up to a hidden state; ``ClipConfig``: its sizes
``mlp_projector``         linear layers from the encoder to the language model
``ClipProcessor``         a view → pixels, as in ``preprocessor_config.json``
``Size``                  a width and a height in pixels
``pad_to_square``         an image in the middle of a square
``best_canvas``           the best canvas for an image
``fit_on_canvas``         an image in the middle of a canvas
``cut_tiles``             a canvas as a grid of square tiles
``read_pinpoints``        the canvases that a configuration lists
``module_sources``        where the tensors of a module are stored
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
