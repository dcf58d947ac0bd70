"""The ONNX graph as a torch module, and the training that gives pruned models their accuracy back.

The only part of the package that imports torch, lazily: nothing outside may import it at module level.
"""
