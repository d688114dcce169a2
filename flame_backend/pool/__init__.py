"""The pool: a pure machine that decides, and an executor that acts."""
