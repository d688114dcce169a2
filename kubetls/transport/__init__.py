"""The guarded connection: nothing is sent before the server's identity is proved."""
