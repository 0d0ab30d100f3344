"""One file per layer, as in manual_backprop/layers."""
