//! Network namespaces: enter one on a thread, make one, hold one.
