# The relay and nothing else: no shell, no libraries, no user but a number.
#
#   docker build -t pyrycode-relay .
#   docker run --read-only --cap-drop ALL --stop-timeout 12 --ulimit nofile=100064 \
#       -p 8080:8080 pyrycode-relay --insecure-listen :8080 --trust-x-forwarded-for
#
# --stop-timeout: a shut-down may take 10 s. The cap on connections is what the limit
# on open files leaves. Nothing is written but certificates, and these to the volume.

# On Alpine, whose musl is linked statically by default and looks up names without
# files of its own.
FROM rust:1-alpine AS build
RUN apk add --no-cache build-base
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin pyrycode-relay \
    && install -D -s target/release/pyrycode-relay /out/pyrycode-relay \
    && install -d -m 0700 /out/autocert

FROM scratch
COPY --from=build /out/pyrycode-relay /pyrycode-relay
COPY --from=build --chown=65532:65532 /out/autocert /var/lib/relay/autocert
VOLUME ["/var/lib/relay/autocert"]
USER 65532:65532
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s CMD ["/pyrycode-relay", "probe", "--health", "http://127.0.0.1:8080"]
ENTRYPOINT ["/pyrycode-relay"]
CMD ["--insecure-listen", ":8080"]
