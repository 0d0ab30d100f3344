"""Everything that is measured: each module writes its part of the README or a page of docs/, as the Makefile says."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy's, which it reads when it is loaded; torch has its own
