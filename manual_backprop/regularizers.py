"""Against overfitting, what concerns the parameters and no example: L1 and max-norm. L2 is in optimizers.py."""

from torch import Tensor

from manual_backprop.norm import norm


def l1_subgradient(theta: Tensor, decay: Tensor) -> Tensor:
    """λ ⊙ sign(θ), the gradient of the penalty Σ_w λ |w|, with sign(0) = 0; λ is `decay`, 0 for biases and scales.

    Nielsen writes (λ_N/n) Σ |w| with the size n of the training set, so λ = λ_N / n (chapter 3).
    """
    return decay * theta.sign()


def max_norm(W: Tensor, limit: float) -> Tensor:
    """Rows w of W (out, in, …), the weights into one neuron, shortened to w min(1, limit / ‖w‖).

    Source: Srebro and Shraibman 2005; with dropout: Srivastava et al. 2014.
    """
    rows = W.flatten(1)
    return (rows * (limit / norm(rows, dim=1)).clamp(max=1)).to(W.dtype).view_as(W)
