"""The prunable weights of a model, each seen as a matrix."""

from onnxprune.layers.find import find_layers as find_layers
from onnxprune.layers.layer import Bias as Bias
from onnxprune.layers.layer import Layer as Layer
from onnxprune.layers.layer import MatrixView as MatrixView
from onnxprune.layers.layer import Recurrence as Recurrence
from onnxprune.layers.layer import Reset as Reset
from onnxprune.layers.layer import Site as Site
from onnxprune.layers.layer import Skip as Skip
from onnxprune.layers.layer import Window as Window
from onnxprune.layers.layer import why_skipped as why_skipped

__all__ = [
    "Bias",
    "Layer",
    "MatrixView",
    "Recurrence",
    "Reset",
    "Site",
    "Skip",
    "Window",
    "find_layers",
    "why_skipped",
]
