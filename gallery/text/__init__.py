"""The right layers of the text networks in tests/support/text, a file each as in manual_backprop/layers.

What is wrong with them stands in gallery/steps.py, beside the mistakes in a step of training.
"""
