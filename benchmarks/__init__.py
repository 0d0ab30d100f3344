import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy's, which it reads when it is loaded; torch has its own
