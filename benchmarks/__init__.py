"""Everything that is measured: each module writes its part of the README or a page of docs/, as the Makefile says."""
