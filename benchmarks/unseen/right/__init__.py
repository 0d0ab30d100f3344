"""Right backward passes that a careless check would accuse."""

from benchmarks.unseen.right import algebra, functions, kinks, modules, precision, saturation, shapes, views

__all__ = ["algebra", "functions", "kinks", "modules", "precision", "saturation", "shapes", "views"]
