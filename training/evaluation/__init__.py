"""How good a learner is, and whether a run learns at all."""

from training.evaluation.evaluation import BLOCK, Evaluation, confidence, evaluate, examples_of

__all__ = ["BLOCK", "Evaluation", "confidence", "evaluate", "examples_of"]
