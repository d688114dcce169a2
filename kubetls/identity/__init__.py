"""Who is that server? Pure rules: certificate bytes in, verdict out (RFC 9525)."""
