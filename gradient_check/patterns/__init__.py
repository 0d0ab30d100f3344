"""The known mistakes: each says what a backward pass with that mistake returns, and whether that is what came back."""
