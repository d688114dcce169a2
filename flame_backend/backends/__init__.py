"""Where runners come from: local processes or pods, behind one small contract."""
