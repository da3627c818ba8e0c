# syntax=docker/dockerfile:1
# Two images, each one program without a shell: docker build --target kv-node|kv-operator .
# What runs needs a C library and nothing else: nodes speak plain HTTP, and the operator trusts the API server's
# certificate alone, which each pod is given. Proven by .github/workflows/e2e.yaml and nothing else.
FROM rust:1.95-bookworm AS chef
RUN cargo install --locked cargo-chef@0.1.78
WORKDIR /src

FROM chef AS recipe
COPY . .
RUN cargo chef prepare --recipe-path recipe.json

FROM chef AS build
COPY --from=recipe /src/recipe.json recipe.json
# The dependencies: built again only when one of them changes.
RUN cargo chef cook --release --locked --package kv-node --package kv-operator
COPY . .
RUN cargo build --release --locked --package kv-node --package kv-operator

FROM gcr.io/distroless/cc-debian12:nonroot AS kv-operator
COPY --from=build /src/target/release/kv-operator /usr/local/bin/
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/kv-operator"]

FROM gcr.io/distroless/cc-debian12:nonroot AS kv-node
COPY --from=build /src/target/release/kv-node /usr/local/bin/
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/kv-node"]
