"""Pruning from statistics that grow with the data, without starting over."""

from onnxprune.online.pruner import Pruner as Pruner

__all__ = ["Pruner"]
