//! The packet cases through BPF_PROG_TEST_RUN.
