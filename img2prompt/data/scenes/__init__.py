"""The embedded demo set: composed prompts and the pictures drawn from them."""

from img2prompt.data.scenes.compose import Scene, Subject, compose
from img2prompt.data.scenes.draw import draw

__all__ = ["Scene", "Subject", "compose", "draw"]
