"""A pack that reads GGUF files as ComfyUI-GGUF does, for where that pack is not at hand.

What MODELs are concerned with has the names and the ways of that pack: packed tensors of a class of
their own, layers without weights that unpack them when they are used, and a patcher that hands
weight patches to them. Only what the tests ask for is here.
"""

from .nodes import NODE_CLASS_MAPPINGS as NODE_CLASS_MAPPINGS
