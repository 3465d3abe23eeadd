"""HTTP/1.1 on bytes: heads, bodies and answers in, values out; no I/O."""
