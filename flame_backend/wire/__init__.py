"""What crosses between parent and runner: frames, values, functions, and the link."""
