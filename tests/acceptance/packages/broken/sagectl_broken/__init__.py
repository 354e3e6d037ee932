raise RuntimeError("libsomething.so.3 is missing")
