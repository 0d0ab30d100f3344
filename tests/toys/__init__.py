"""Two toy families written in the contracts of the project: what the perceptron does not ask of a contract, these do.

A convolution with batch norm and a shared weight (conv_net.py), and a recurrent cell over time with noise and a
carried state (recurrent_net.py); their layers, and their twins (twins.py).
"""
