"""What explain.py shows: the numbers behind one training example, its figures, and the page."""
