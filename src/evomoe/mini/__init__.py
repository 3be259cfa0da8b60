"""A small synthetic world for vision-language models: training data, and test sets in seven benchmarks' official formats."""

from evomoe.mini.world import FOLDERS, VERSION, Sizes, TestSizes, cache, ensure, folder, write

__all__ = ["FOLDERS", "VERSION", "Sizes", "TestSizes", "cache", "ensure", "folder", "write"]
