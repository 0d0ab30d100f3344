"""Two small families that predict text, written in the project's contracts: what a recurrent network and a transformer
need of them is known to be there. The project's own come later."""
