# The image of all programs, as `cargo xtask image` makes it without a container engine.
#
#   docker build -t coil:dev .
#
# Debian's own compilers: rustc-web has `core` for the BPF target; rustup's toolchain builds the rest.
FROM rust:1-bookworm AS build
COPY . /coil
WORKDIR /coil
RUN cargo xtask image --rootfs /rootfs

FROM scratch
COPY --from=build /rootfs /
ENV PATH=/usr/local/coil
